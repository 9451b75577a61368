"""Rules for the fields of rotary positions and of sliding windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.fields import Config, Fields, Flags
from flagformer.interop.hugging_face.settings import at, collapse

SLIDING, FULL = "sliding_attention", "full_attention"
# Fields of transformers 4, which are read too.
OLD = (
    "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
    "rope_local_base_freq",
)  # fmt: skip
OLD_BY_KIND = ("global_rope_theta", "local_rope_theta")
# Numbers of a rule of scaling; others are refused by name.
NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
    "longrope": (
        "factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor",
    ),
}  # fmt: skip
SCALED = tuple(name for name in NUMBERS if name != "longrope")  # that most classes have
ORIGINAL = "original_max_position_embeddings"
WINDOW = "attn_max_attend_past"


class _Rope:
    """`rope_parameters` of all layers, or by kind of layer."""

    def __init__(
        self,
        theta: float,
        kinds: Mapping[str, float] | None,
        partial: float | None,
        default: Mapping[str, Any] | None,
        types: tuple[str, ...],
        width: str,
        dims: str,
        unread: tuple[str, ...],
        original: int | None,
    ) -> None:
        self.unread, self.original = unread, original
        self.theta, self.kinds, self.partial, self.default, self.types = theta, kinds, partial, default, types
        self.width, self.dims = width, dims

    def to_flags(self, config: Config, flags: Flags) -> Flags:
        given = dict(config["rope_parameters"] or {})
        if not given and self.default and not any(config.get(name) for name in OLD):
            given = dict(self.default)
        if self.kinds is None:
            given = given or self._of_version_4(config, flags)
            if (
                self.original is not None
                and given.get("rope_type", given.get("type", "default")) != "default"
            ):
                given = {**given, "rope_type": "longrope", ORIGINAL: config[ORIGINAL]}
                given.setdefault("factor", flags["max_seq_len"] / config[ORIGINAL])
            rows = [self._row(given, flags, self.theta)] * flags["depth"]
        else:
            given = given or self._by_kind_of_version_4(config, self.kinds)
            unknown = sorted(set(given) - set(self.kinds))
            if unknown:
                raise ConversionError([f"config `rope_parameters` has no kind of layer {unknown[0]!r}"])
            rows = [self._row(given.get(kind), flags, self.kinds[kind]) for kind in kinds_of(flags)]
        base, width, scaling = zip(*rows)
        return {
            "rotary_pos_emb": flags.get("rotary_pos_emb", True),
            "rotary_base": collapse(base),
            "rotary_emb_dim": collapse(width),
            "rotary_scaling": collapse(scaling),
        }

    def _of_version_4(self, config: Config, flags: Flags) -> Config:
        part = config.get("partial_rotary_factor") or config.get("rotary_pct")
        if config.get(self.dims):
            part = config[self.dims] / flags[self.width]
        return {
            **(config.get("rope_scaling") or {}),
            "rope_theta": config.get("rope_theta") or config.get("rotary_emb_base") or self.theta,
            "partial_rotary_factor": part,
        }

    def _by_kind_of_version_4(self, config: Config, kinds: Mapping[str, float]) -> Config:
        scaled = config.get("rope_scaling") or {}
        return {
            FULL: {**scaled, "rope_theta": _first(config, "rope_theta", OLD_BY_KIND[0]) or kinds[FULL]},
            SLIDING: {"rope_theta": _first(config, "rope_local_base_freq", OLD_BY_KIND[1]) or kinds[SLIDING]},
        }

    def _row(
        self, given: Mapping[str, Any] | None, flags: Flags, theta: float
    ) -> tuple[float, int | None, Config | None]:
        """Base, rotated dimensions and scaling of one layer."""
        numbers = {name: value for name, value in (given or {}).items() if value is not None}
        kind = numbers.pop("rope_type", None) or numbers.pop("type", "default")
        numbers.pop("type", None)
        if kind not in self.types:
            known = ", ".join(map(repr, self.types))
            raise ConversionError([f"config `rope_parameters`: `rope_type` must be {known}, but is {kind!r}"])
        base = float(numbers.pop("rope_theta", None) or theta)
        part = numbers.pop("partial_rotary_factor", None) or self.partial or 1.0
        if part != 1 and self.partial is None:
            raise ConversionError([f"config `partial_rotary_factor`: {part!r} is not read by this class"])
        numbers = {name: value for name, value in numbers.items() if name not in self.unread}
        width = int(flags[self.width] * part)
        self._refuse_unknown(kind, numbers)
        scaling = None if kind == "default" else self._scaling(kind, numbers, flags)
        return base, None if width == flags["attn_dim_head"] else width, scaling

    def _refuse_unknown(self, kind: str, numbers: Config) -> None:
        unknown = [name for name in numbers if name not in NUMBERS[kind]]
        if unknown:
            raise ConversionError([f"config `rope_parameters` has no number {unknown[0]!r} for {kind!r}"])

    def _scaling(self, kind: str, numbers: Config, flags: Flags) -> Config:
        scaling = {"rope_type": kind, **numbers}
        if kind in ("yarn", "dynamic"):
            scaling.setdefault("original_max_position_embeddings", flags["max_seq_len"])
        if kind == "dynamic":  # fixed for texts of the original length
            scaling["original_max_position_embeddings"] = flags["max_seq_len"]
            scaling["seq_len"] = flags["max_seq_len"]
        return scaling

    def to_fields(self, flags: Flags) -> Config:
        if self.kinds is None:
            only = self._parameters(flags, 0)
            length = {} if self.original is None else {ORIGINAL: only.get(ORIGINAL, self.original)}
            return {"rope_parameters": only, **length}
        found = kinds_of(flags)
        return {
            "rope_parameters": {
                kind: self._parameters(flags, found.index(kind))
                if kind in found
                else {"rope_type": "default", "rope_theta": theta}
                for kind, theta in self.kinds.items()
            }
        }

    def _parameters(self, flags: Flags, layer: int) -> Config:
        # a layer without rotation has no numbers: those of the first that has them
        layers = range(flags["depth"])
        rotated = [i for i in (layer, *layers) if at(flags, "rotary_base", i) is not None]
        if not rotated:
            raise ConversionError(["flag `rotary_pos_emb`: None has no place in config `rope_parameters`"])
        layer = rotated[0]
        found = dict(at(flags, "rotary_scaling", layer) or {"rope_type": "default"})
        found = {name: list(one) if isinstance(one, tuple) else one for name, one in found.items()}
        if found["rope_type"] == "dynamic":
            found = {name: found[name] for name in ("rope_type", "factor")}
        found["rope_theta"] = at(flags, "rotary_base", layer)
        width = at(flags, "rotary_emb_dim", layer) or flags["attn_dim_head"]
        if self.partial is not None or width != flags[self.width]:
            found["partial_rotary_factor"] = width / flags[self.width]
        return found


class _AlphaRope(_Rope):
    """Dynamic scaling with a number `alpha` multiplies the base by alpha ** (R / (R - 2)) at all lengths."""

    def _row(
        self, given: Mapping[str, Any] | None, flags: Flags, theta: float
    ) -> tuple[float, int | None, Config | None]:
        numbers = dict(given or {})
        kind, alpha = numbers.get("rope_type") or numbers.get("type"), numbers.get("alpha")
        if kind != "dynamic" or not alpha:
            return super()._row(numbers, flags, theta)
        width, base = flags[self.width], numbers.get("rope_theta") or theta
        return super()._row({"rope_theta": base * alpha ** (width / (width - 2))}, flags, theta)


def rope(
    theta: float = 1e4,
    kinds: Mapping[str, float] | None = None,
    partial: float | None = None,
    default: Mapping[str, Any] | None = None,
    types: tuple[str, ...] = SCALED,
    width: str = "attn_dim_head",
    dims: str = "",
    unread: tuple[str, ...] = (),
    alpha: bool = False,
    original: int | None = None,
) -> Fields:
    """`rope_parameters`, and its fields in version 4.

    Args:
        theta: the base of the config class.
        kinds: for parameters by kind of layer: kind -> base.
        partial: the part of a head that the class rotates; None: it reads no such field.
        default: the parameters where a file has none.
        types: the rules of scaling that the class has.
        width: the flag of the width that `partial` is a part of.
        dims: the field of the rotated dimensions in version 4.
        unread: numbers that the class does not read.
        alpha: whether `alpha` of dynamic scaling scales the base, and no other number is read, as in HunYuan.
        original: the default of `original_max_position_embeddings` of classes whose only scaling is LongRoPE.
    """
    rule = (_AlphaRope if alpha else _Rope)(
        theta, kinds, partial, default, types, width, dims, unread, original
    )
    fields: Config = {"rope_parameters": None}
    if original is not None:
        fields[ORIGINAL] = original
    old = (*OLD, *(OLD_BY_KIND if kinds else ()), *([dims] if dims else []))
    return Fields(fields, rule.to_flags, rule.to_fields, old)


def _first(config: Config, *names: str) -> Any:
    """The first of these fields that is set."""
    return next((config[name] for name in names if config.get(name)), None)


def kinds_of(flags: Flags) -> list[str]:
    """The kind of each layer, by its window."""
    return [SLIDING if at(flags, WINDOW, layer) else FULL for layer in range(flags["depth"])]


def windows(
    width: int | None = None,
    kinds: Callable[[Config, int], list[str]] | None = None,
    types: bool = True,
    used: bool = True,
) -> Fields:
    """`sliding_window`, the number of keys that a query sees, itself included; and the kinds of layers.

    Args:
        width: the default of the config class.
        kinds: (fields, depth) -> the default of `layer_types`; None: all sliding where there is a window.
        types: whether the class has `layer_types`.
        used: whether the class has `use_sliding_window` and `max_window_layers`.
    """
    fields: Config = {"sliding_window": width}
    if types:
        fields["layer_types"] = None
    if used:
        fields |= {"use_sliding_window": False, "max_window_layers": 28}

    def to_flags(config: Config, flags: Flags) -> Flags:
        depth, keys = flags["depth"], config["sliding_window"]
        if used and not config["use_sliding_window"]:
            keys = None
        found = config.get("layer_types") or (
            kinds(config, depth) if kinds else [SLIDING if keys else FULL] * depth
        )
        unknown = sorted(set(found) - {SLIDING, FULL})
        if unknown or len(found) != depth:
            text = f"config `layer_types` must hold {SLIDING!r} or {FULL!r} for each of {depth} layers"
            raise ConversionError([f"{text}, but holds {unknown or len(found)}"])
        if SLIDING in found and not keys:
            raise ConversionError(["config `layer_types` has sliding layers, but `sliding_window` is none"])
        return {WINDOW: collapse(keys - 1 if kind == SLIDING else None for kind in found)}

    def to_fields(flags: Flags) -> Config:
        found = kinds_of(flags)
        past = next((at(flags, WINDOW, i) for i, kind in enumerate(found) if kind == SLIDING), None)
        keys = None if past is None else past + 1
        config: Config = {"sliding_window": width if keys is None and types else keys}
        if types:
            config["layer_types"] = found
        if used:
            config["use_sliding_window"] = keys is not None
            config["max_window_layers"] = 0 if keys else flags["depth"]
        return config

    return Fields(fields, to_flags, to_fields, ("sliding_window_pattern", "_sliding_window_pattern"))
