"""Sampling of token ids from next-token logits, with temperature, filter and seed."""

import torch
from torch import Tensor

from flagformer.generation.filters import LogitsFilter, is_number

FP32 = torch.finfo(torch.float32)


class Sampler:
    """Draws one token per row from logits [B, V]: ids [B].

    Args:
        temperature: divides the filtered logits; 0 takes the most likely token (no filter, no randomness).
        logits_filter: function of the logits, applied before the temperature; None draws from all tokens.
        seed: an int seeds a separate generator, so that draws repeat and the global one is not used; None
            draws from torch's global generator.
        device: device of the logits.
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
            largest, token = logits.max(dim=-1)
            check_largest(largest)
            return token
        filtered = logits if self.logits_filter is None else self.logits_filter(logits)
        if filtered.shape != logits.shape:
            raise ValueError(
                f"`filter_logits_fn` must return logits of shape {list(logits.shape)}, "
                f"but returned {list(filtered.shape)}"
            )
        filtered = filtered.float()
        largest = filtered.amax(dim=-1, keepdim=True)
        check_largest(largest)
        # The largest becomes 0, so that a temperature near 0 cannot overflow it.
        scaled = (filtered - largest) / min(max(self.temperature, FP32.tiny), FP32.max)
        return torch.multinomial(scaled.softmax(dim=-1), 1, generator=self.generator)[:, 0]


def check_largest(largest: Tensor) -> None:
    """Check that the largest logit of each row is finite, so that a token can be drawn."""
    if not largest.isfinite().all():
        wrong = largest[~largest.isfinite()][0].item()
        raise ValueError(
            f"logits of the next token must have a finite maximum to be drawn from, but it is {wrong}: find "
            "where the model overflows (`flagformer.audit`), or check the result of `filter_logits_fn`"
        )
