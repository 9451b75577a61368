"""ViTransformerWrapper: images in, classes or a sequence of patches out, around any Encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from flagformer.embedding.patches import PatchEmbedding, Registers
from flagformer.flags import LAYER_SCOPES, Finding, Flag, FlagError
from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.identity import identity
from flagformer.stack.layers import AttentionLayers, Encoder
from flagformer.stack.whole import Whole
from flagformer.wrappers.flag_groups import FlagGroup, own_flag_errors
from flagformer.wrappers.storage import save_model

Size = int | tuple[int, ...]


class ViTransformerWrapper(Whole):
    """A vision transformer (arXiv:2010.11929) with register tokens (arXiv:2309.16588).

    Relative schemes count patches row by row; register tokens stand behind the last patch and are left out of
    what is returned. The published model reads a class token, this one the mean over patches (appendix D.3).
    Patches have learned places, unless the layers say `disable_abs_pos_emb=True`.

    Args:
        attn_layers: an Encoder without cross-attention, with any flags.

    Raises:
        FlagError: for values that cannot be, all at once.
    """

    parts = (FlagGroup("", LAYER_SCOPES, frozenset({"causal", "cross_attend", "only_cross"})),)
    first = ("attn_layers",)

    def __init__(
        self,
        *,
        image_size: Annotated[Size, Flag("image_size", "pixels, one number or (height, width)", ge=1)],
        patch_size: Annotated[Size, Flag("patch_size", "pixels of a patch, the same", ge=1)],
        attn_layers: AttentionLayers,
        channels: Annotated[int, Flag("channels", "channels C of an image", ge=1)] = 3,
        num_classes: Annotated[
            int | None, Flag("num_classes", "logits; None: the model gives embeddings", ge=1)
        ] = None,
        post_emb_norm: Annotated[bool, Flag("post_emb_norm", "LayerNorm of the embedded patches")] = False,
        num_register_tokens: Annotated[
            int, Flag("num_register_tokens", "learned tokens that belong to no patch (2309.16588)", ge=0)
        ] = 0,
        emb_dropout: Annotated[float, Flag("emb_dropout", "dropout of embeddings", ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            "image_size": image_size,
            "patch_size": patch_size,
            "channels": channels,
            "num_classes": num_classes,
            "post_emb_norm": post_emb_norm,
            "num_register_tokens": num_register_tokens,
            "emb_dropout": emb_dropout,
        }
        _check(given, attn_layers)
        self.own, dim = given, attn_layers.dim
        image, patch = _pair(image_size), _pair(patch_size)
        grid = (image[0] // patch[0], image[1] // patch[1])
        placed = attn_layers.hints.disable_abs_pos_emb is not True
        self.patches = PatchEmbedding(grid, patch, channels, dim, placed)
        self.post_emb_norm = LayerNorm(dim) if post_emb_norm else identity
        self.emb_dropout = nn.Dropout(emb_dropout) if emb_dropout else identity
        self.registers = Registers(num_register_tokens, dim) if num_register_tokens else identity
        self.attn_layers = attn_layers
        self.head = identity if num_classes is None else nn.Linear(dim, num_classes)

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> ViTransformerWrapper:
        """What `flagformer.build` makes of `model: vit`."""
        own = {name: value for name, value in flags.items() if name in OWN}
        findings = own_flag_errors(ViTransformerWrapper, own)
        layers: AttentionLayers | None = None
        try:
            layers = Encoder(**{name: value for name, value in flags.items() if name not in OWN})
        except FlagError as error:
            findings += error.findings
        if findings or layers is None:
            raise FlagError(findings)
        sizes = {name: _as_size(own[name]) for name in ("image_size", "patch_size")}
        return ViTransformerWrapper(attn_layers=layers, **{**own, **sizes})

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags that `flagformer.build` makes this model of."""
        layers = {name: value for name, value in self.attn_layers.flags.items() if name != "causal"}
        return {"model": "vit", **self.own, **layers}

    def num_params(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def explain(self) -> str:
        """What was built, slot by slot, and why each kernel was chosen."""
        rows, columns = self.patches.grid
        height, width = self.patches.patch
        registers = self.own["num_register_tokens"]
        what = f"{rows} x {columns} patches of {height} x {width} pixels, {registers} registers"
        title = f"ViTransformerWrapper: {self.num_params():,} parameters, {what}"
        return "\n".join([title, self.attn_layers.explain()])

    def save(self, directory: str | Path) -> None:
        """Writes `model.safetensors` and `flags.json`; `flagformer.load` reads them back."""
        save_model(self, Path(directory))

    def forward(
        self, img: Tensor, return_embeddings: bool = False, return_logits_and_embeddings: bool = False
    ) -> Any:
        """Images -> logits.

        Args:
            img: [B, C, height, width], both multiples of `patch_size`; any such size: learned positions are
                resized where it is not `image_size`.
            return_embeddings: the patches' output [B, N, D], row by row, in place of logits. So does a model
                without `num_classes`.
            return_logits_and_embeddings: (logits, embeddings).

        Returns:
            logits [B, num_classes], of the mean over patches, or what the `return_` argument says.

        Raises:
            ValueError: naming the argument, what it was and what it must be.
        """
        classes = self.own["num_classes"]
        if return_logits_and_embeddings and (return_embeddings or classes is None):
            why = "`return_embeddings` is given too" if return_embeddings else "`num_classes` is None"
            raise ValueError(f"`return_logits_and_embeddings` must be False, because {why}")
        x = self.emb_dropout(self.post_emb_norm(self.patches(img)))
        count = x.shape[1]
        embeddings = self.attn_layers(self.registers(x))[:, :count]
        if return_embeddings or classes is None:
            return embeddings
        logits = self.head(embeddings.mean(dim=1))
        return (logits, embeddings) if return_logits_and_embeddings else logits


OWN = frozenset(
    {
        "image_size", "patch_size", "channels", "num_classes", "post_emb_norm", "num_register_tokens",
        "emb_dropout",
    }
)  # fmt: skip


def _as_size(value: Any) -> Any:
    """Files write pairs as lists."""
    return tuple(value) if isinstance(value, list) else value


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(given: Mapping[str, Any], layers: Any) -> None:
    """Refuses values that cannot be, and layers that cannot read an image, all at once."""
    findings = own_flag_errors(ViTransformerWrapper, given)
    if not findings:
        findings = _check_sizes(given["image_size"], given["patch_size"])
    if not isinstance(layers, AttentionLayers) or layers.causal or layers.has_cross:
        what = type(layers).__name__
        what += " with cross-attention" if getattr(layers, "has_cross", False) else ""
        text = f"`attn_layers` must be an Encoder without cross-attention, but is {what}"
        findings.append(Finding("attn_layers", text))
    if findings:
        raise FlagError(findings)


def _check_sizes(image: Size, patch: Size) -> list[Finding]:
    findings = []
    for name, size in (("image_size", image), ("patch_size", patch)):
        if isinstance(size, tuple) and (len(size) != 2 or min(size) < 1):
            text = f"`{name}` must be one number or (height, width) of at least 1, but is {size}"
            findings.append(Finding(name, text))
    if findings:
        return findings
    pixels, part = _pair(image), _pair(patch)
    if pixels[0] % part[0] or pixels[1] % part[1]:
        text = f"`image_size` must be a multiple of `patch_size` {patch}, but is {image}"
        findings.append(Finding("image_size", text))
    return findings
