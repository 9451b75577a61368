"""Filters for sampling: pure functions from next-token logits [..., V] to logits of the same shape.

Removed tokens get minus infinity and the others keep their value, so filters can be composed, and followed by
the temperature. Every filter keeps at least the most likely token.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

LogitsFilter = Callable[..., Tensor]


def _require(holds: bool, name: str, wanted: str, value: object) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {wanted}, but is {value!r}")


def is_number(value: object) -> bool:
    """Whether a setting is a finite int or float (True and False are not)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # also for integers beyond the range of float


def top_k(logits: Tensor, frac_num_tokens: float = 0.1, k: int | None = None) -> Tensor:
    """Keep exactly the `k` most likely tokens (Fan et al., arXiv:1805.04833).

    `k` is at least 1; more than the vocabulary means all of it. Without `k`, the share `frac_num_tokens` of
    the vocabulary is kept, rounded up. Among equal logits at the border the choice is torch.topk's.
    """
    num_tokens = logits.shape[-1]
    if k is None:
        fits = is_number(frac_num_tokens) and 0 < frac_num_tokens <= 1
        _require(fits, "frac_num_tokens", "a number above 0 and at most 1", frac_num_tokens)
        k = math.ceil(frac_num_tokens * num_tokens)
    fits = isinstance(k, int) and not isinstance(k, bool) and k >= 1
    _require(fits, "k", "a whole number of at least 1", k)
    values, indices = logits.topk(min(k, num_tokens), dim=-1)
    return torch.full_like(logits, -math.inf).scatter(-1, indices, values)


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """Keep the smallest set of most likely tokens whose mass is at least `thres` (arXiv:1904.09751).

    `thres` is above 0 and at most 1; 1 keeps everything.
    """
    _require(is_number(thres) and 0 < thres <= 1, "thres", "a number above 0 and at most 1", thres)
    if thres == 1:
        return logits
    ordered, indices = logits.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(dim=-1, dtype=torch.float32).cumsum(dim=-1)
    mass_before = F.pad(mass[..., :-1], (1, 0))
    return logits.scatter(-1, indices, ordered.masked_fill(mass_before >= thres, -math.inf))


def min_p(logits: Tensor, min_p: float = 0.1) -> Tensor:
    """Keep tokens whose probability is at least `min_p` times that of the most likely one (arXiv:2407.01082).

    `min_p` lies between 0 (keeps everything) and 1 (keeps the most likely token and its equals).
    """
    _require(is_number(min_p) and 0 <= min_p <= 1, "min_p", "a number from 0 to 1", min_p)
    probs = logits.softmax(dim=-1, dtype=torch.float32)
    return logits.masked_fill(probs < min_p * probs.amax(dim=-1, keepdim=True), -math.inf)


def top_a(logits: Tensor, min_p_pow: float = 2.0, min_p_ratio: float = 0.02) -> Tensor:
    """Keep tokens with probability at least `min_p_ratio * p_max ** min_p_pow`, where p_max is the largest.

    `min_p_pow` is at least 1 and `min_p_ratio` lies between 0 and 1: other values could drop every token.
    """
    _require(is_number(min_p_pow) and min_p_pow >= 1, "min_p_pow", "a number of at least 1", min_p_pow)
    fits = is_number(min_p_ratio) and 0 <= min_p_ratio <= 1
    _require(fits, "min_p_ratio", "a number from 0 to 1", min_p_ratio)
    probs = logits.softmax(dim=-1, dtype=torch.float32)
    limit = min_p_ratio * probs.amax(dim=-1, keepdim=True) ** min_p_pow
    return logits.masked_fill(probs < limit, -math.inf)


FILTERS: dict[str, LogitsFilter] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "top_a": top_a}
"""The filters that `generate` accepts by name; add your own to use it by name."""


def _suggest(word: str, known: list[str]) -> str:
    nearest = get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


def find_filter(name_or_function: str | LogitsFilter) -> LogitsFilter:
    """A filter by its name in `FILTERS`, or the given function itself. ValueError for an unknown name."""
    if callable(name_or_function):
        return name_or_function
    if name_or_function not in FILTERS:
        known = ", ".join(FILTERS)
        raise ValueError(
            f"`filter_logits_fn` must be one of {known} or a function, but is {name_or_function!r}"
            + _suggest(str(name_or_function), list(FILTERS))
        )
    return FILTERS[name_or_function]


def bind_filter(
    name_or_function: str | LogitsFilter | None, settings: Mapping[str, object] | None
) -> LogitsFilter | None:
    """Bind the settings (`filter_kwargs`) of a filter: a function of the logits; None for None.

    ValueError names an unknown setting and the nearest known one.
    """
    if name_or_function is None:
        if settings:
            raise ValueError("`filter_kwargs` must be left out when `filter_logits_fn` is None")
        return None
    function = find_filter(name_or_function)
    if not settings:
        return function
    if not isinstance(settings, Mapping):
        raise ValueError(f"`filter_kwargs` must be a dict of settings, but is {settings!r}")
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = list(parameters)[1:]
    for setting in settings:
        if setting not in known and not takes_any:
            name = getattr(function, "__name__", "the filter")
            takes = ", ".join(f"`{word}`" for word in known) or "none"
            raise ValueError(
                f"`filter_kwargs` must hold settings of {name} ({takes}), but holds `{setting}`"
                + _suggest(setting, known)
            )
    return partial(function, **settings)
