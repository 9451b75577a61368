"""One draw: next-token logits to token ids, by temperature, filter and seed."""

import torch
from torch import Tensor

from flagformer.generation.filters import LogitsFilter, is_number

FP32 = torch.finfo(torch.float32)


class Sampler:
    """Draws one token per row from logits [B, V]: ids [B].

    Args:
        temperature: divides the filtered logits; 0 takes the most likely token (no filter, no randomness).
        logits_filter: function of the logits, applied before the temperature; None draws from all tokens.
        seed: an int gives the sampler a generator of its own, so that draws repeat and the global one is left
            alone; None draws from torch's global generator.
        device: where the logits live.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        logits_filter: LogitsFilter | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not is_number(temperature) or temperature < 0:
            raise ValueError(
                f"`temperature` must be a number of at least 0, but is {temperature!r}; "
                "0 takes the most likely token"
            )
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        if seed is not None and not (whole and -(2**63) <= seed < 2**64):
            raise ValueError(
                f"`seed` must be a whole number from -2**63 to 2**64 - 1 or None, but is {seed!r}"
            )
        self.temperature = temperature
        self.logits_filter = logits_filter
        self.generator = None if seed is None else torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            most, token = logits.max(dim=-1)
            check_largest(most)
            return token
        kept = logits if self.logits_filter is None else self.logits_filter(logits)
        if kept.shape != logits.shape:
            raise ValueError(
                f"`filter_logits_fn` must return logits of shape {list(logits.shape)}, "
                f"but returned {list(kept.shape)}"
            )
        kept = kept.float()
        most = kept.amax(dim=-1, keepdim=True)
        check_largest(most)
        # The largest becomes 0, so that a temperature near 0 cannot overflow it.
        scaled = (kept - most) / min(max(self.temperature, FP32.tiny), FP32.max)
        return torch.multinomial(scaled.softmax(dim=-1), 1, generator=self.generator)[:, 0]


def check_largest(most: Tensor) -> None:
    """The largest logit of each row: NaN where one is, infinite where nothing can be drawn from."""
    if not most.isfinite().all():
        wrong = most[~most.isfinite()][0].item()
        raise ValueError(
            f"logits of the next token must have a finite maximum to be drawn from, but it is {wrong}: see "
            "where the model overflows (`flagformer.audit`), or what `filter_logits_fn` leaves"
        )
