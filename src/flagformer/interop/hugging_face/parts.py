"""The tensors of a model under plain names: each is a view of a tensor of its state dict.

`layers.3.attn.q.weight` is the first rows of `attn_layers.sublayers.6.fn.source.projection.to_qkv.weight`.
Layers are counted by kind: `attn`, `cross`, `ff`, `mixer`; with mixers and feedforwards, by block; with
`custom_layers`, each sublayer is a layer. Experts are under `moe`, their norm is under `ff`.
A tensor without a plain name keeps its own after the name of its layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from flagformer.interop.hugging_face.stacks import Stack, stacks_of

View = Callable[[Tensor], Tensor]
KINDS = {"a": "attn", "c": "cross", "f": "ff", "m": "mixer"}
TOP = {
    "token_emb": "embed", "pos_emb.table": "pos", "embedding.kinds.token_type_embed": "types",
    "embedding.norm": "embed_norm", "embedding.project": "embed_project", "attn_layers.final_norm": "norm",
    "head.project": "head", "head.add_bias": "head", "head.narrow": "head.narrow",
}  # fmt: skip
PLAIN = {
    "fn.to_out": "o", "fn.w_in": "up", "fn.w_out": "down", "fn.router": "router",
    "fn.activation": "activation", "fn.balance_bias": "balance", "fn.shared_gate": "shared_gate",
    "fn.shared.w_in": "shared.up",
    "fn.shared.w_out": "shared.down", "fn.source.projection.to_q": "q",
    "fn.source.projection.to_q_latent": "q_down", "fn.source.projection.q_norm": "q_down_norm",
    "fn.source.projection.to_latent": "kv_down", "fn.source.projection.latent_norm": "kv_down_norm",
}  # fmt: skip


DELTA = {
    "fn.to_qkv": ("q", "k", "v"), "fn.to_gate": ("gate",), "fn.to_beta": ("beta",), "fn.to_step": ("step",),
}  # fmt: skip


class Part(NamedTuple):
    """A tensor of a model.

    Attributes:
        state: its name in the state dict.
        view: the part of that tensor.
    """

    state: str
    view: View


def parts_of(model: nn.Module) -> dict[str, Part]:
    """Plain name -> part, for all tensors of the state dict; those of an encoder-decoder begin with `enc.` or
    `dec.`, and those around a stack keep their names."""
    state, found = list(model.state_dict()), dict[str, Part]()
    for stack in stacks_of(model):
        inside = [name for name in state if name.startswith(stack.state)]
        found |= {stack.plain + name: part for name, part in _parts_of_stack(stack, inside).items()}
        state = [name for name in state if name not in inside]
    return found | {name: Part(name, _same) for name in state}


def _parts_of_stack(stack: Stack, names: list[str]) -> dict[str, Part]:
    found: dict[str, Part] = {}
    counts: Counter[str] = Counter()
    layers = []
    hybrid = {"m", "f"} <= {sublayer.kind for sublayer in stack.model.attn_layers.sublayers}
    custom = stack.model.attn_layers.resolved.flags.get("custom_layers") is not None
    for place, sublayer in enumerate(stack.model.attn_layers.sublayers):
        layers.append((place if custom else counts["f" if hybrid else sublayer.kind], sublayer))
        counts[sublayer.kind] += 1
    for state in names:
        name = state.removeprefix(stack.state)
        module, _, kind = name.rpartition(".")
        if not module.startswith("attn_layers.sublayers."):
            view: View = _grid if name == "patches.pos_emb" else _same
            found[f"{TOP.get(module, module)}.{kind}"] = Part(state, view)
            continue
        _, _, index, rest = name.split(".", 3)
        layer, sublayer = layers[int(index)]
        inside = "moe" if rest.startswith("fn.") and hasattr(sublayer.fn, "router") else KINDS[sublayer.kind]
        for plain, view in _split(sublayer, *rest.rpartition(".")[::2]):
            found[f"layers.{layer}.{inside}.{plain}"] = Part(state, view)
    return found


def _split(sublayer: Any, module: str, kind: str) -> Iterator[tuple[str, View]]:
    """(plain name, view) of the parts of one tensor of a sublayer."""
    if module.startswith("fn.source.projection."):
        yield from _projection(sublayer.fn.source.projection, module.rpartition(".")[2], kind)
    elif module == "fn.source.qk_norm":  # q_weight, k_weight: [H, 1, K] or [K]
        yield f"{kind.removesuffix('_weight')}_norm.weight", _flat
    elif module.startswith("fn.source.qk_norm."):  # LayerNorm: [H or 1, 1, K]
        yield f"{module.rpartition('.')[2]}.{kind}", _flat
    elif module.endswith("normalizer") and kind == "score":  # [H, 1, 1]
        yield "sinks", _flat
    elif module in ("fn.w_in", "fn.shared.w_in"):
        yield from _gated(sublayer.fn, module, kind)
    elif hasattr(sublayer.fn, "to_beta") and module in DELTA:
        yield from _delta(sublayer.fn, module, kind)
    elif module == "fn.balance_bias":
        yield "balance", _same
    else:
        yield f"{PLAIN.get(module, module)}.{kind}", _same


def _gated(fn: nn.Module, module: str, kind: str) -> Iterator[tuple[str, View]]:
    """The values and the gates of a gated linear unit, which one projection makes: [2 F, D], [E, 2 F, D]."""
    name = PLAIN[module]
    if getattr(fn, "gated", None) is None:
        yield f"{name}.{kind}", _same
        return
    experts = int(module == "fn.w_in" and hasattr(fn, "router"))
    tensor: Any = fn.get_parameter(f"{module.removeprefix('fn.')}.{kind}")
    width = tensor.shape[experts] // 2
    yield f"{name}.{kind}", _rows(0, width, experts)
    yield f"{name.replace('up', 'gate')}.{kind}", _rows(width, width, experts)


def _delta(fn: Any, module: str, kind: str) -> Iterator[tuple[str, View]]:
    """Projections of gated DeltaNet by group of heads: [G, n, D]."""
    groups, start = fn.groups, 0
    widths = fn.widths if module == "fn.to_qkv" else [fn.get_submodule(module[3:]).out_features]
    for name, width in zip(DELTA[module], widths):
        yield f"{name}.{kind}", _grouped(start, width, groups)
        start += width


def _projection(projection: Any, name: str, kind: str) -> Iterator[tuple[str, View]]:
    """Queries, keys and values of their common projections."""
    whole = name.removesuffix("_bias")  # biases of some of the outputs are a module of their own
    if whole in ("to_qkv", "to_kv") and hasattr(projection, "width"):
        heads, groups, width = projection.heads, projection.groups, projection.width
        queries = heads * width if whole == "to_qkv" else 0
        keys = groups * width
        values = getattr(projection, whole).out_features - queries - keys
        keys = keys if kind == "weight" or projection.has_k_bias else 0
        if queries:
            yield f"q.{kind}", _rows(0, queries)
        if keys:
            yield f"k.{kind}", _rows(queries, keys)
        yield f"v.{kind}", _rows(queries + keys, values)
    elif hasattr(projection, "latent_norm") and name in ("to_q", "to_kv"):
        yield from _latent(projection, name, kind)
    else:
        yield f"{PLAIN.get(f'fn.source.projection.{name}', name)}.{kind}", _same


def _latent(projection: Any, name: str, kind: str) -> Iterator[tuple[str, View]]:
    """Parts [H, n, ...] of latent attention: rotated and other dims of queries; keys and values."""
    heads, rope = projection.heads, projection.rope
    total = getattr(projection, name).out_features
    if name == "to_q":
        width = total // heads
        yield f"q_rope.{kind}", lambda x: x.unflatten(0, (heads, width))[:, :rope]
        yield f"q_nope.{kind}", lambda x: x.unflatten(0, (heads, width))[:, rope:]
        return
    keys = projection.to_q.out_features - heads * rope
    yield f"k_up.{kind}", lambda x: x[:keys].unflatten(0, (heads, -1))
    yield f"v_up.{kind}", lambda x: x[keys:].unflatten(0, (heads, -1))


def _same(x: Tensor) -> Tensor:
    return x


def _grid(x: Tensor) -> Tensor:
    """[rows, columns, D] -> [rows * columns, D]."""
    return x.flatten(0, 1)


def _flat(x: Tensor) -> Tensor:
    return x.view(-1)


def _grouped(start: int, count: int, groups: int) -> View:
    return lambda x: x.narrow(0, start, count).unflatten(0, (groups, -1))


def _rows(start: int, count: int, dim: int = 0) -> View:
    return lambda x: x.narrow(dim, start, count)


class Tensors:
    """The tensors of a model by plain name, for the rules of tables.

    Args:
        parts: of the model.
        state: its state dict; of meta tensors for shapes.
        settings: its flags, for rules that need sizes.
    """

    def __init__(
        self, parts: Mapping[str, Part], state: Mapping[str, Tensor], settings: Mapping[str, Any]
    ) -> None:
        self.parts, self.state, self.settings = parts, state, dict(settings)

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __call__(self, name: str) -> Tensor:
        part = self.parts[name]
        return part.view(self.state[part.state])
