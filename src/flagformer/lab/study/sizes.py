"""Sizes of a model from shapes alone: parameters, and the decode state."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from flagformer.feedforward.moe import MixtureOfExperts

LONGEST = 128  # tokens of the decode states whose sizes are compared


class StateSize(NamedTuple):
    """The size of a decode state of one row, in bytes: of each token, and that of no token."""

    per_token: int
    fixed: int


def body_params(model: Any) -> int:
    """Parameters without token and position embeddings; of images all."""
    return int(model.num_params() if is_vision(model) else model.num_params(embedding=False))


def active_params(model: Any) -> int:
    """Parameters that one token uses: one row of an embedding table, all of a table tied to the output
    projection, and of a mixture the experts that the token chooses. Of an encoder-decoder those of a token of
    the source and one of the target."""
    idle = sum(idle_experts(module) for module in model.modules() if isinstance(module, MixtureOfExperts))
    tables: dict[int, int] = {}
    for part in text_parts(model):
        for table in (*part.token_emb.parameters(), *part.pos_emb.parameters()):
            tables.setdefault(id(table), table.shape[-1])
        if part.flags.get("tie_embedding"):
            tables[id(part.token_emb.weight)] = part.token_emb.weight.numel()
    return body_params(model) + sum(tables.values()) - idle


def idle_experts(mixture: MixtureOfExperts) -> int:
    """Parameters of the experts that a token does not choose."""
    experts = mixture.w_in.weight.shape[0]
    inside = sum(one.numel() for part in (mixture.w_in, mixture.w_out) for one in part.parameters())
    return inside // experts * (experts - mixture.choice.top_k)


def decode_state(model: Any) -> StateSize | None:
    """The size of the decode state; None for a model that is not decoded step by step.

    Of an encoder-decoder that of the target, without the keys and values of the source.
    """
    parts = text_parts(model)
    if not parts or not getattr(parts[-1], "can_cache", False) or not hasattr(parts[-1], "init_state"):
        return None
    decoder = parts[-1]
    longest = max(2, min(LONGEST, decoder.max_seq_len))
    short, long = (decoder.init_state(1, length).size_bytes() for length in (longest // 2, longest))
    per_token = round((long - short) / (longest - longest // 2))
    return StateSize(per_token, max(0, long - per_token * longest))


def text_parts(model: Any) -> list[Any]:
    """The parts of a model that read token ids; the decoder last."""
    kind = model.flags.get("model")
    if kind in ("xtransformer", "memformer"):
        return [model.encoder, *([] if model.decoder is None else [model.decoder.net])]
    if kind == "classifier":
        return [model.encoder]
    if kind in ("routing_lm", "routing_encdec"):
        return list(model.halves())
    return [model] if hasattr(model, "token_emb") else []


def is_vision(model: Any) -> bool:
    return bool(model.flags.get("model") == "vit")


class ReadsBoth(nn.Module):
    """An encoder-decoder that reads the same ids as source and as target: ids [B, T] -> logits [B, T, V]."""

    def __init__(self, pair: Any) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, ids: Any) -> Any:
        return self.pair.decoder.net(ids, context=self.pair.encode(ids))
