"""ViTransformerWrapper: images in, classes or a sequence of patches out, around any Encoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from torch import Tensor, nn

from flagformer.embedding.norms import PostEmbNormBias, PostEmbNormEps, build_embedding_norm
from flagformer.embedding.patches import ClassToken, PatchEmbedding, Registers
from flagformer.flags import CATALOGUE, LAYER_SCOPES, Finding, Flag, FlagError, resolve
from flagformer.flags.groups import FlagGroup, own_flag_errors, own_flags
from flagformer.flags.needs import without_ids
from flagformer.head.pooler import TANH, Pooler, PoolerActivation, pooler_errors
from flagformer.norm.layernorm import DEFAULT_EPS
from flagformer.ops.identity import identity
from flagformer.stack.inputs import check_row_condition
from flagformer.stack.layers import AttentionLayers, Encoder
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Saved

Size = int | tuple[int, ...]
POOLING = ("mean", "class", "distilled")
PatchNorm = Annotated[bool, Flag("patch_norm", "LayerNorms of the pixels of a patch and of its embedding")]
WithClass = Annotated[bool, Flag("class_token", "a learned token before the patches (2010.11929)")]
WithPosition = Annotated[
    bool, Flag("class_token_position", "learned positions of the class token and the distillation token")
]
WithDistillation = Annotated[
    bool, Flag("distillation_token", "a second token, after the class token (DeiT, 2012.12877)")
]
Pooling = Annotated[
    str,
    Flag(
        "pooling",
        "logits are of the mean over patches, of the class token, or the mean of those of both tokens",
        choices=POOLING,
    ),
]
WithPooler = Annotated[bool, Flag("pooler", "a projection and an activation before the logits (1810.04805)")]


class ViTransformerWrapper(Whole, Saved):
    """A vision transformer (arXiv:2010.11929) with register tokens (arXiv:2309.16588).

    Relative schemes count patches row by row, after the class token where there is one; register tokens
    follow the last patch and are removed from the result. Logits are of the mean over patches (appendix D.3),
    or of a class token; the published model has `class_token=True, class_token_position=True,
    pooling="class", patch_norm=False, norm_bias=True, attn_bias=True`. Patches have learned positions, unless
    the layers have `disable_abs_pos_emb=True`.

    Args:
        attn_layers: an Encoder without cross-attention, with any flags.

    Raises:
        FlagError: lists every invalid value.
    """

    parts = (FlagGroup("", LAYER_SCOPES, frozenset({"causal", "cross_attend", "only_cross"})),)
    first = ("attn_layers",)
    slots_of_model = ("embedding_norm",)

    def __init__(
        self,
        *,
        image_size: Annotated[Size, Flag("image_size", "pixels, one number or (height, width)", ge=1)],
        patch_size: Annotated[Size, Flag("patch_size", "pixels of a patch, in the same form", ge=1)],
        attn_layers: AttentionLayers,
        channels: Annotated[int, Flag("channels", "channels C of an image", ge=1)] = 3,
        num_classes: Annotated[
            int | None, Flag("num_classes", "logits; None: the model returns embeddings", ge=1)
        ] = None,
        patch_norm: PatchNorm = True,
        patch_bias: Annotated[bool, Flag("patch_bias", "a bias in the projection of patches")] = True,
        class_token: WithClass = False,
        class_token_position: WithPosition = False,
        distillation_token: WithDistillation = False,
        pooling: Pooling = "mean",
        pooler: WithPooler = False,
        pooler_activation: PoolerActivation = TANH,
        post_emb_norm: Annotated[bool, Flag("post_emb_norm", "LayerNorm of the embedded patches")] = False,
        post_emb_norm_eps: PostEmbNormEps = DEFAULT_EPS,
        post_emb_norm_bias: PostEmbNormBias = False,
        num_register_tokens: Annotated[
            int, Flag("num_register_tokens", "learned tokens after the patches (2309.16588)", ge=0)
        ] = 0,
        emb_dropout: Annotated[float, Flag("emb_dropout", "dropout of embeddings", ge=0, lt=1)] = 0.0,
        embedding_norm: Any = None,
    ) -> None:
        """See the class; `embedding_norm` takes a component of your own, in place of `post_emb_norm`."""
        super().__init__()
        given = own_flags(ViTransformerWrapper, locals())
        _check(given, attn_layers)
        self.own, dim = given, attn_layers.dim
        image, patch = _pair(image_size), _pair(patch_size)
        grid = (image[0] // patch[0], image[1] // patch[1])
        has_positions = attn_layers.dims.disable_abs_pos_emb is not True
        self.patches = PatchEmbedding(grid, patch, channels, dim, has_positions, patch_norm, patch_bias)
        token = partial(ClassToken, dim, class_token_position)
        self.distillation_token = token() if distillation_token else identity
        self.class_token = token() if class_token else identity
        self.given_slots = {} if embedding_norm is None else {"embedding_norm": embedding_norm}
        set_flags = {name: given[name] for name in given if name.startswith("post_emb_norm") and given[name]}
        resolved = resolve({**set_flags, **self.given_slots}, CATALOGUE, {"model"}, slots=self.slots_of_model)
        self.post_emb_norm = build_embedding_norm(resolved.one("embedding_norm"), dim)
        self.emb_dropout = nn.Dropout(emb_dropout) if emb_dropout else identity
        self.registers = Registers(num_register_tokens, dim) if num_register_tokens else identity
        self.attn_layers = attn_layers
        self.pooler = Pooler(dim, pooler_activation) if pooler else identity
        classes = num_classes or 0
        self.head = nn.Linear(dim, classes) if classes else identity
        self.distillation_head = nn.Linear(dim, classes) if pooling == "distilled" else identity

    @staticmethod
    def from_flags(flags: Mapping[str, Any]) -> ViTransformerWrapper:
        """The model that `flagformer.build` returns for `model: vit`."""
        own = own_flags(ViTransformerWrapper, flags)
        findings = own_flag_errors(ViTransformerWrapper, own)
        own |= {name: flags[name] for name in ViTransformerWrapper.slots_of_model if name in flags}
        layers: AttentionLayers | None = None
        try:
            layers = Encoder(**{name: value for name, value in flags.items() if name not in (*own, "model")})
        except FlagError as error:
            findings += error.findings
        if findings or layers is None:
            raise FlagError(findings)
        sizes = {name: _as_size(own[name]) for name in ("image_size", "patch_size")}
        return ViTransformerWrapper(attn_layers=layers, **{**own, **sizes})

    @property
    def flags(self) -> dict[str, Any]:
        """The flat flags from which `flagformer.build` builds this model."""
        layers = {name: value for name, value in self.attn_layers.flags.items() if name != "causal"}
        return {"model": "vit", **self.own, **self.given_slots, **layers}

    def num_params(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def explain(self) -> str:
        """Describe the components, slot by slot, and the reason for each kernel."""
        rows, columns = self.patches.grid
        height, width = self.patches.patch
        registers = self.own["num_register_tokens"]
        sizes = f"{rows} x {columns} patches of {height} x {width} pixels, {registers} registers"
        title = f"ViTransformerWrapper: {self.num_params():,} parameters, {sizes}"
        return "\n".join([title, self.attn_layers.explain()])

    def forward(
        self,
        img: Tensor,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        *,
        condition: Tensor | None = None,
    ) -> Any:
        """Images -> logits.

        Args:
            img: [B, C, height, width], both multiples of `patch_size`. Learned positions are resized for
                sizes other than `image_size`.
            return_embeddings: return the patches' output [B, N, D], row by row, in place of logits; with a
                class token [B, 1 + N, D], its output first, with a distillation token [B, 2 + N, D], its
                output second. A model without `num_classes` always does.
            return_logits_and_embeddings: return (logits, embeddings).
            condition: [B, C], that of an image, for layers that read one (`adaptive_layernorm`). None: zeros.

        Returns:
            logits [B, num_classes], of the mean over patches or the class token (`pooling`), or the result of
            the `return_` argument.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        classes = self.own["num_classes"]
        if return_logits_and_embeddings and (return_embeddings or classes is None):
            why = "`return_embeddings` is given too" if return_embeddings else "`num_classes` is None"
            raise ValueError(f"`return_logits_and_embeddings` must be False, because {why}")
        if condition is not None:
            check_row_condition(condition)
        x = self.class_token(self.distillation_token(self.patches(img)))
        x = self.emb_dropout(self.post_emb_norm(x))
        count = x.shape[1]
        embeddings = self.attn_layers(self.registers(x), condition=condition)[:, :count]
        if return_embeddings or classes is None:
            return embeddings
        logits = self.head(self.pooler(self._pooled(embeddings)))
        if self.own["pooling"] == "distilled":
            logits = (logits + self.distillation_head(embeddings[:, 1])) / 2
        return (logits, embeddings) if return_logits_and_embeddings else logits

    def _pooled(self, embeddings: Tensor) -> Tensor:
        """[B, N, D], after the outputs of the class token and of the distillation token -> [B, D]."""
        if self.own["pooling"] != "mean":
            return embeddings[:, 0]
        return embeddings[:, self.own["class_token"] + self.own["distillation_token"] :].mean(dim=1)


def _as_size(value: Any) -> Any:
    """Convert a list, the form of a pair in files, to a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _check(given: Mapping[str, Any], layers: Any) -> None:
    """Raise one FlagError for all invalid values and for layers that cannot read an image."""
    findings = own_flag_errors(ViTransformerWrapper, given)
    if not findings:
        findings = [*_check_sizes(given["image_size"], given["patch_size"]), *_unused(given)]
    if not isinstance(layers, AttentionLayers) or layers.causal or layers.has_cross:
        found = type(layers).__name__
        found += " with cross-attention" if getattr(layers, "has_cross", False) else ""
        text = f"`attn_layers` must be an Encoder without cross-attention, but is {found}"
        findings.append(Finding("attn_layers", text))
    else:
        findings += without_ids(layers.flags, "images", CATALOGUE)
    if findings:
        raise FlagError(findings)


def _unused(given: Mapping[str, Any]) -> list[Finding]:
    """Return a finding for each flag that has no effect without another one."""
    distilled = given["pooling"] == "distilled"
    needs = (
        ("class_token_position", "class_token", given["class_token_position"]),
        ("distillation_token", "class_token", given["distillation_token"]),
        ("pooling", "class_token", given["pooling"] != "mean"),
        ("pooling", "distillation_token", distilled),
        ("pooling", "num_classes", distilled),
        ("pooler", "num_classes", given["pooler"]),
    )
    return pooler_errors(given["pooler"], given["pooler_activation"]) + [
        Finding(name, f"`{name}` has no effect here, because `{other}` is not set; set that too")
        for name, other, is_set in needs
        if is_set and not given[other]
    ]


def _check_sizes(image: Size, patch: Size) -> list[Finding]:
    findings = []
    for name, size in (("image_size", image), ("patch_size", patch)):
        if isinstance(size, tuple) and (len(size) != 2 or min(size) < 1):
            text = f"`{name}` must be one number or (height, width) of at least 1, but is {size}"
            findings.append(Finding(name, text))
    if findings:
        return findings
    (height, width), (rows, columns) = _pair(image), _pair(patch)
    if height % rows or width % columns:
        text = f"`image_size` must be a multiple of `patch_size` {patch}, but is {image}"
        findings.append(Finding("image_size", text))
    return findings
