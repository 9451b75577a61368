"""A model of flags as an `LM` of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby, islice
from typing import Any

import torch
from torch import Tensor

from flagformer.inputs.requests import check_net
from flagformer.lab.lm_eval.requirement import load_lm_eval
from flagformer.lab.lm_eval.scoring import Request, Score, score
from flagformer.lab.lm_eval.tokens import Tokens
from flagformer.ops.home import home_of
from flagformer.wrappers.autoregressive import AutoregressiveWrapper

TemplateLM: Any = load_lm_eval("lm_eval.api.model").TemplateLM
windows: Any = load_lm_eval("lm_eval.utils")
LONGEST = 2048  # tokens, for models without a limit
NEW_TOKENS = 256  # of a generation whose task does not say, as in lm_eval
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SETTINGS = (*LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p")


class FlagformerLM(TemplateLM):
    """A causal model, for `lm_eval.simple_evaluate(model=FlagformerLM(...), tasks=[...])`.

    Requests are sorted by length, those with equal inputs are read once, and scores are remembered. Rolling
    log-likelihoods score each token of a text once, the first given `tokens.prefix`, in windows of
    `max_length` tokens: those after the first begin with one token of context, and the last is moved back so
    that it is full.

    Args:
        model: a causal TransformerWrapper, on its device.
        tokens: its tokenizer.
        batch_size: rows of a batch.
        max_length: longest input in tokens; contexts lose tokens at the left. None: `max_seq_len`.

    Raises:
        ValueError: for a model that is not causal.
    """

    def __init__(
        self, model: Any, tokens: Tokens, batch_size: int = 8, max_length: int | None = None
    ) -> None:
        super().__init__()
        check_net(model, "model")
        self.model, self.tokens, self.batch_size = model, tokens, batch_size
        self.max_length = max_length or model.max_seq_len or LONGEST
        self.scores: dict[Request, Score] = {}
        self._device = home_of(model)[0]

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text; the prefix where there is none."""
        return self.tokens.prefix if self.tokens.end is None else self.tokens.end

    @property
    def prefix_token_id(self) -> int:
        """The id before the first token of a text."""
        return self.tokens.prefix

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer, in the keys of lm_eval's cache of requests."""
        return self.tokens.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """The ids of a text, with the tokenizer's special tokens unless they are refused."""
        return self.tokens.encode(string, special=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of the targets of (key, context, targets)."""
        wanted = [self._request(context, targets) for _, context, targets in requests]
        new = list(dict.fromkeys(one for one in wanted if one not in self.scores))
        self.scores.update(zip(new, score(self.model, new, self.batch_size), strict=True))
        found = [(self.scores[one].log_likelihood, self.scores[one].is_greedy) for one in wanted]
        for (key, _, _), result in zip(requests, found):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return found

    def _request(self, context: list[int], targets: list[int]) -> Request:
        """A request whose context has lost the tokens that the model cannot read."""
        if not targets or len(targets) > self.max_length:
            raise ValueError(
                f"a continuation must have from 1 to {self.max_length} tokens, the longest input of the "
                f"model, but has {len(targets)}: {self.tokens.decode(targets[:20])!r}"
            )
        return Request(tuple(context[-(self.max_length + 1 - len(targets)) :]), tuple(targets))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text."""
        parts = [self._windows(request.args[0]) for request in requests]
        values = iter(self._loglikelihood_tokens(list(chain(*parts))))
        found = [sum(value for value, _ in islice(values, len(part))) for part in parts]
        for request, total in zip(requests, found):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return found

    def _windows(self, text: str) -> list[tuple[None, list[int], list[int]]]:
        """(None, context, targets) of each window of a text."""
        ids = self.tok_encode(text, add_special_tokens=False)
        pairs = windows.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
        return [(None, *windows.make_disjoint_window(pair)) for pair in pairs]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first stop sequence or the end of a text."""
        encoded = [self.tok_encode(request.args[0]) for request in requests]
        found: dict[int, str] = {}

        def settings_of(index: int) -> str:
            return repr(sorted(requests[index].args[1].items()))

        order = sorted(range(len(requests)), key=lambda index: (settings_of(index), -len(encoded[index])))
        for _, group in groupby(order, key=settings_of):
            indices = list(group)
            for start in range(0, len(indices), self.batch_size):
                batch = indices[start : start + self.batch_size]
                texts = self._generate([encoded[index] for index in batch], requests[batch[0]].args[1])
                found.update(zip(batch, texts, strict=True))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[index])
        return [found[index] for index in range(len(requests))]

    def _generate(self, contexts: list[list[int]], given: dict[str, Any]) -> list[str]:
        """The texts after contexts, with the settings of a task."""
        count, stops, sampling = generation_settings(given)
        longest = self.max_length - count  # as HFLM, although the last token is not read
        if longest < 1:
            raise ValueError(
                f"`max_gen_toks` must be below {self.max_length}, the longest input of the model, but is "
                f"{count}: set it in `generation_kwargs` of the task"
            )
        prompts = [context[-longest:] or [self.prefix_token_id] for context in contexts]
        tail = 1 + max((len(stop.encode()) for stop in stops), default=0)  # tokens that a stop sequence fits

        def stopped(new: Tensor) -> Tensor:
            ends = (self.tokens.decode(row) for row in new[:, -tail:].tolist())
            return torch.tensor([any(stop in end for stop in stops) for end in ends])

        new = AutoregressiveWrapper(self.model).generate(
            prompts, count, eos_token=self.tokens.end, stop=stopped if stops else None, **sampling
        )
        return [self._text(row, stops) for row in new.tolist()]

    def _text(self, ids: list[int], stops: list[str]) -> str:
        """The text of new ids before the end of a text and the first stop sequence."""
        if self.tokens.end in ids:
            ids = ids[: ids.index(self.tokens.end)]
        text = self.tokens.decode(ids)
        return text[: min([len(text), *(text.find(stop) for stop in stops if stop in text)])]


def generation_settings(given: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """The `generation_kwargs` of a task as (number of new tokens, stop sequences, arguments of `generate`).

    Raises:
        ValueError: for a setting that is not known, and for top_k together with top_p.
    """
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ValueError(f"`generation_kwargs` must be of {', '.join(SETTINGS)}, but `{unknown[0]}` is not")
    count = next((int(given[name]) for name in LENGTHS if given.get(name) is not None), NEW_TOKENS)
    until = given.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    temperature = float(given.get("temperature") or 0.0)
    do_sample = given.get("do_sample")
    if do_sample is False or (do_sample is None and not temperature):
        return count, stops, {"temperature": 0}
    top_k, top_p = given.get("top_k"), given.get("top_p")
    if top_k and top_p:
        raise ValueError("`generation_kwargs` must have `top_k` or `top_p`, but has both")
    sampling: dict[str, Any] = {"temperature": temperature or 1.0, "filter_logits_fn": None}
    if top_k:
        sampling |= {"filter_logits_fn": "top_k", "filter_kwargs": {"k": top_k}}
    if top_p:
        sampling |= {"filter_logits_fn": "top_p", "filter_kwargs": {"thres": top_p}}
    return count, stops, sampling
