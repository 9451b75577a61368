"""Models that this library and x-transformers can both build, given by arguments of x-transformers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.interop.flag_translator import flags_of_x_transformers

OLD, NEW = "1.27", "2.31"
SIZES = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
VOCABULARY, LENGTH, CONTEXT, IMAGE = 50, 48, 11, 16
TOKENS = 40


@dataclass(frozen=True)
class Case:
    """The arguments of one model of x-transformers.

    Attributes:
        kind: the model: "decoder", "encoder", "prefix_decoder", "xtransformer", "vit".
        ours: flags of this library only, in place of the converted arguments.
        old, new: arguments for one version only.
        versions: the versions that have the feature and compute it correctly.
        padded: the second row ends early, by `mask`.
        prefix: number of first tokens of a PrefixDecoder that every query may attend to.
        prepended: number of prepended vectors; the first is masked in the second row of a padded case.
        memories: the first half of the tokens is its own segment, passed on by `mems`.
        calls: other arguments of the forward.
    """

    flags: dict[str, Any]
    kind: str = "decoder"
    ours: dict[str, Any] = field(default_factory=dict)
    old: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)
    versions: tuple[str, ...] = (OLD, NEW)
    padded: bool = False
    prefix: int | None = None
    prepended: int = 0
    memories: bool = False
    calls: tuple[str, ...] = ()

    def peer_flags(self, version: str) -> dict[str, Any]:
        """The arguments for x-transformers: one dictionary of the wrapper's and the layers'."""
        flags = {**self._sizes(), **self.flags, **(self.old if version == OLD else self.new)}
        return {name: value for name, value in flags.items() if value is not None}

    def our_flags(self, version: str) -> dict[str, Any]:
        """The flags with which `flagformer.build` makes the same model."""
        flags = {"model": self.kind, **self.peer_flags(version)}
        flags = {**flags_of_x_transformers(flags, version), **self.ours}
        return {name: value for name, value in flags.items() if value is not None}

    def _sizes(self) -> dict[str, Any]:
        if self.kind == "vit":
            return {**SIZES, "image_size": IMAGE, "patch_size": 4, "num_classes": 7}
        if self.kind == "xtransformer":
            half = {
                "depth": 2,
                "heads": 4,
                "attn_dim_head": 16,
                "num_tokens": VOCABULARY,
                "max_seq_len": LENGTH,
            }
            halves = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in half.items()}
            return {"dim": SIZES["dim"], **halves}
        return {**SIZES, "num_tokens": VOCABULARY, "max_seq_len": LENGTH}


# Arguments of a forward for rows of TOKENS tokens.
CALLS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "attn_mask": lambda maker: (torch.rand(TOKENS, TOKENS, generator=maker) < 0.6) | torch.eye(TOKENS).bool(),
    "seq_start_pos": lambda maker: torch.tensor([0, 9]),
    "sum_embeds": lambda maker: torch.randn(2, TOKENS, SIZES["dim"], generator=maker),
    "pos": lambda maker: torch.randperm(LENGTH, generator=maker)[:TOKENS],
}


def run(model: nn.Module, case: Case) -> Tensor:
    """The outputs at valid positions, [N], followed by a weighted sum of them all."""
    maker = torch.Generator().manual_seed(2)
    if case.kind == "vit":
        # without classes x-transformers returns the mean of this library's output
        image = torch.randn(2, case.flags.get("channels", 3), IMAGE, IMAGE, generator=maker)
        said = model(image, return_embeddings="num_classes" in case.flags).flatten()
    elif case.kind == "xtransformer":
        said = _translated(model, maker)
    else:
        said = _read(model, case, maker)
    weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(3))
    return torch.cat((said, (said * weights).sum()[None] / len(said) ** 0.5))


def _translated(model: Any, maker: torch.Generator) -> Tensor:
    """An encoder-decoder: the decoder's logits and the loss; the source's second row is padded."""
    source, target = (torch.randint(VOCABULARY, (2, length), generator=maker) for length in (17, 23))
    mask = torch.arange(17) < torch.tensor([[17], [12]])
    encoded = model.encoder(source, mask=mask, return_embeddings=True)
    logits = model.decoder.net(target, context=encoded, context_mask=mask)
    return torch.cat((logits.flatten(), model(source, target, mask=mask)[None]))


def _read(model: Any, case: Case, maker: torch.Generator) -> Tensor:
    ids = torch.randint(VOCABULARY, (2, TOKENS), generator=maker)
    real = torch.ones_like(ids, dtype=torch.bool)
    call: dict[str, Any] = {}
    if case.padded:
        real[1, 29:] = False
        call["mask"] = real
    if case.prefix is not None:
        call["prefix_attn_len"] = case.prefix
    if case.prepended:
        width = case.flags.get("emb_dim", SIZES["dim"])
        call["prepend_embeds"] = torch.randn(2, case.prepended, width, generator=maker)
        front = torch.ones(2, case.prepended, dtype=torch.bool)
        if case.padded:
            front[1, 0] = False
            call["prepend_mask"] = front
        real = torch.cat((front, real), dim=1)
    if case.flags.get("cross_attend") or "c" in case.flags.get("custom_layers", ()):
        width = case.flags.get("cross_attn_dim_context", SIZES["dim"])
        call["context"] = torch.randn(2, CONTEXT, width, generator=maker)
        call["context_mask"] = torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [7]])
    kinds = case.flags.get("embed_num_tokens")
    if kinds:
        call["embed_ids"] = {name: ids % count for name, count in kinds.items()}
    for name in case.calls:
        call[name] = CALLS[name](maker)
        if name == "seq_start_pos":
            real &= torch.arange(TOKENS) >= call[name][:, None]
    if case.memories:
        _, call["mems"] = model(ids[:, : TOKENS // 2], return_mems=True)
        ids, real = ids[:, TOKENS // 2 :], real[:, TOKENS // 2 :]
    return model(ids, **call)[real].flatten()
