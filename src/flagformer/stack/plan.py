"""The order of sublayers, in pure Python: flags -> kinds of modules, and the module of each step.

Kinds: "a" self-attention, "c" cross-attention, "f" feedforward, "m" mixer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.stack.mixer_pattern import place_mixers

KINDS = ("a", "c", "f", "m")
# Largest number of steps; more take minutes to build, and published models have less than a tenth.
MAX_STEPS = 10_000

CrossAttend = Annotated[
    bool, Flag("cross_attend", "blocks are a-c-f: cross-attention to a context", neutral=True)
]
OnlyCross = Annotated[bool, Flag("only_cross", "blocks are c-f: no self-attention")]
Macaron = Annotated[bool, Flag("macaron", "blocks are f-a-f with halved f (1906.02762)")]
CustomLayers = Annotated[
    tuple[str, ...] | str | None,
    Flag("custom_layers", "the sequence of sublayers, of 'a', 'c', 'f', 'm'"),
]
SandwichCoef = Annotated[
    int | None, Flag("sandwich_coef", "number of a first and of f last (1911.03864)", ge=1)
]
ParRatio = Annotated[int | None, Flag("par_ratio", "sublayers per attention, f last (2009.04534)", ge=2)]
Tied = Annotated[bool, Flag("weight_tie_layers", "one block runs `depth` times (ALBERT, 1909.11942)")]
Execute = Annotated[
    tuple[int, ...] | None, Flag("layers_execute_order", "index of the sublayer of each step")
]
Mixers = Annotated[
    tuple[str, ...] | str | None,
    Flag(
        "mixer",
        "mixers in place of self-attention, or in parallel: a name, one per layer, or a pattern such as"
        " '3 mamba2 : 1 attention' or 'mamba2 + attention'",
        example="1 gated_deltanet : 1 short_convolution + attention",
    ),
]
ParallelBlock = Annotated[
    bool, Flag("parallel_block", "the sublayers of a block read one norm of its input; outputs are added")
]
OwnNorms = Annotated[
    bool,
    Flag(
        "parallel_block_own_norms",
        "a norm for each sublayer of a parallel block, as in GPT-NeoX",
        example_with={"parallel_block": True},
    ),
]


@component("plan")
class Plan:
    """Blocks of sublayers, repeated, reordered, tied or in parallel.

    Attributes:
        kinds: the kind of each module.
        order: the module of each step (tied modules run at several steps).
        half_step: whether feedforward outputs are halved (macaron).
        groups: the index, ascending, of the group of each module; modules of one group run in parallel. Plans
            of your own may lack it.
        own_norms: whether each module of a group has its own input norm. Plans of your own may lack it.
    """

    kinds: tuple[str, ...]
    order: tuple[int, ...]
    half_step: bool

    def __init__(
        self,
        *,
        depth: Annotated[int | None, Flag("depth", "number of blocks", ge=1)] = None,
        cross_attend: CrossAttend = False,
        only_cross: OnlyCross = False,
        macaron: Macaron = False,
        custom_layers: CustomLayers = None,
        sandwich_coef: SandwichCoef = None,
        par_ratio: ParRatio = None,
        tied: Tied = False,
        execute: Execute = None,
        mixer: Mixers = None,
        parallel: ParallelBlock = False,
        own_norms: OwnNorms = False,
    ) -> None:
        self.half_step, self.own_norms = macaron, own_norms
        block = _block(cross_attend, only_cross, macaron)
        _check_number(depth, len(block), custom_layers, execute)
        orders: dict[str, Any] = {"sandwich_coef": sandwich_coef, "par_ratio": par_ratio}
        others = {"custom_layers": custom_layers, "macaron": macaron, "layers_execute_order": execute}
        _check_parallel(parallel, own_norms, {**orders, **others})
        orders["weight_tie_layers"] = tied
        if custom_layers is not None:
            given = {"depth": depth, "cross_attend": cross_attend, "only_cross": only_cross, **orders}
            kinds = _custom(custom_layers, given)
        else:
            kinds = _blocks(block, depth, orders, only_cross)
        orders |= {"only_cross": only_cross, "custom_layers": custom_layers}
        order = next((name for name, value in orders.items() if value), "")
        self.kinds, self.mixers, places = place_mixers(kinds, mixer, order)
        self.groups = tuple(place // (len(block) if parallel else 1) for place in places)
        self.order = tuple(range(len(self.kinds))) * (depth if tied and depth is not None else 1)
        if execute is not None:
            given = {"weight_tie_layers": tied, "cross_attend": cross_attend, "only_cross": only_cross}
            given |= {"macaron": macaron, "custom_layers": custom_layers is not None}
            _check_whole_layers(places)
            self.order = _executed(execute, len(self.kinds), given)


def _check_number(
    depth: int | None, width: int, custom_layers: Sequence[str] | None, execute: Sequence[int] | None
) -> None:
    given = {"depth": (depth or 0) * width, "custom_layers": len(custom_layers or ())}
    given["layers_execute_order"] = len(execute or ())
    findings = [
        Finding(name, f"`{name}` must give at most {MAX_STEPS} sublayers, but gives {count}")
        for name, count in given.items()
        if count > MAX_STEPS
    ]
    if findings:
        raise FlagError(findings)


def _check_parallel(parallel: bool, own_norms: bool, given: Mapping[str, Any]) -> None:
    """Raise FlagError for flags of parallel blocks without these, and for orders without blocks."""
    if own_norms and not parallel:
        text = "`parallel_block_own_norms` has no effect here, because no blocks are parallel; set"
        text = f"{text} `parallel_block=True`, or leave it out"
        raise FlagError([Finding("parallel_block_own_norms", text)])
    if not parallel:
        return
    why = dict.fromkeys(given, "orders single sublayers, which form no blocks")
    why["macaron"] = "runs feedforwards before and after attention"
    findings = [
        Finding(
            "parallel_block",
            f"`parallel_block` and `{name}` cannot be combined, because `{name}` {why[name]}; leave one of"
            " them out",
        )
        for name, value in given.items()
        if value
    ]
    if findings:
        raise FlagError(findings)


def _check_whole_layers(places: Sequence[int]) -> None:
    """Raise FlagError for an order of single sublayers where some run in parallel."""
    if len(set(places)) < len(places):
        text = "`layers_execute_order` and `mixer` cannot be combined here, because the first orders single"
        text = f"{text} sublayers, and those that `mixer` joins by '+' run together; leave one of them out"
        raise FlagError([Finding("layers_execute_order", text)])


def _block(cross_attend: bool, only_cross: bool, macaron: bool) -> tuple[str, ...]:
    if cross_attend and only_cross:
        text = "`cross_attend` and `only_cross` cannot be combined, because blocks are a-c-f or c-f; keep one"
        raise FlagError([Finding("cross_attend", text)])
    block = ("c", "f") if only_cross else ("a", "c", "f") if cross_attend else ("a", "f")
    return ("f", *block) if macaron else block


def _custom(layers: tuple[str, ...] | str, given: dict[str, Any]) -> tuple[str, ...]:
    findings = [
        Finding(name, f"`{name}` and `custom_layers` cannot be combined, because both order the sublayers")
        for name, value in given.items()
        if value
    ]
    kinds = tuple(layers)
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        error = f"holds {wrong[0]!r}" if wrong else "is empty"
        text = f"`custom_layers` must be a sequence of 'a', 'c', 'f' and 'm', but {error}"
        findings.append(Finding("custom_layers", text))
    if findings:
        raise FlagError(findings)
    return kinds


def _blocks(
    block: tuple[str, ...], depth: int | None, orders: dict[str, Any], only_cross: bool
) -> tuple[str, ...]:
    """`depth` blocks; `orders`: the flags that repeat them in another way, or tie them."""
    if depth is None:
        text = "`depth` is required: number of blocks (or give `custom_layers`)"
        raise FlagError([Finding("depth", text)])
    ratio, coef, tied = orders["par_ratio"], orders["sandwich_coef"], orders["weight_tie_layers"]
    if ratio is not None:
        return _par(block, depth, ratio, {name: orders[name] for name in orders if name != "par_ratio"})
    if coef is not None:
        return _sandwich(block, depth, coef, only_cross, tied)
    return block if tied else block * depth


def _sandwich(block: tuple[str, ...], depth: int, coef: int, only_cross: bool, tied: bool) -> tuple[str, ...]:
    findings = []
    if only_cross:
        text = "`sandwich_coef` and `only_cross` cannot be combined, because a sandwich begins with `a`"
        findings.append(Finding("sandwich_coef", text))
    if tied:
        text = (
            "`sandwich_coef` and `weight_tie_layers` cannot be combined, because a sandwich repeats no block"
        )
        findings.append(Finding("sandwich_coef", text))
    if coef > depth:
        text = f"`sandwich_coef` must be at most `depth` = {depth}, but is {coef}"
        findings.append(Finding("sandwich_coef", text))
    if findings:
        raise FlagError(findings)
    return ("a",) * coef + block * (depth - coef) + ("f",) * coef


def _par(block: tuple[str, ...], depth: int, ratio: int, given: dict[str, Any]) -> tuple[str, ...]:
    """PAR (2009.04534, section 3): attention within two thirds of the depth, then feedforwards."""
    findings = [
        Finding("par_ratio", f"`par_ratio` and `{name}` cannot be combined, because both order sublayers")
        for name, value in given.items()
        if value
    ]
    total = depth * len(block)
    attention = tuple(kind for kind in block if kind != "f")
    count = total // ratio
    front = total * 2 // 3
    width = (front + front // count) // count if count else 0
    if not findings and len(attention) > width:
        word = "`cross_attend`" if len(attention) > 1 else "`depth`"
        text = f"`par_ratio` is too small for {'-'.join(attention)} ({word}) in each of its {count} parts"
        findings.append(Finding("par_ratio", f"{text}: it is {ratio} for {total} sublayers; increase it"))
    if findings:
        raise FlagError(findings)
    head = (attention + ("f",) * (width - len(attention))) * count
    return head + ("f",) * (total - len(head))


def _executed(order: tuple[int, ...], count: int, given: dict[str, Any]) -> tuple[int, ...]:
    if given["weight_tie_layers"]:
        text = "`layers_execute_order` and `weight_tie_layers` cannot be combined, because both set the order"
        raise FlagError([Finding("layers_execute_order", text)])
    wrong = [index for index in order if not 0 <= index < count]
    unused = sorted(set(range(count)) - set(order))
    if wrong or unused:
        names = [f"`{name}`" for name, value in given.items() if value]
        sublayers = f"the {count} sublayers" + (f" of {' and '.join(names)}" if names else "")
        error = (
            f"holds {wrong[0]}" if wrong else f"does not contain {unused[0]}, which would never be trained"
        )
        text = f"`layers_execute_order` must contain the index, from 0, of each of {sublayers}, but {error}"
        raise FlagError([Finding("layers_execute_order", text)])
    return order
