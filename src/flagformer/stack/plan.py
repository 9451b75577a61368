"""The order of sublayers, in pure Python: flags -> kinds of modules, and which runs when.

Kinds: "a" self-attention, "c" cross-attention, "f" feedforward.
"""

from __future__ import annotations

from typing import Annotated

from flagformer.flags import Finding, Flag, FlagError, component

KINDS = ("a", "c", "f")


@component("plan")
class Plan:
    """Blocks of sublayers, repeated, reordered or tied.

    Attributes:
        kinds: the kind of each module.
        order: the module that runs at each step (tied modules run at several).
        halves: feedforwards count half (macaron).
    """

    def __init__(
        self,
        *,
        depth: Annotated[int | None, Flag("depth", "number of blocks", least=1)] = None,
        cross_attend: Annotated[
            bool, Flag("cross_attend", "blocks are a-c-f: cross-attention to a context")
        ] = False,
        only_cross: Annotated[bool, Flag("only_cross", "blocks are c-f: no self-attention")] = False,
        macaron: Annotated[bool, Flag("macaron", "blocks are f-a-f with halved f (1906.02762)")] = False,
        custom_layers: Annotated[
            tuple[str, ...] | str | None, Flag("custom_layers", "the sublayers one by one, of 'a', 'c', 'f'")
        ] = None,
        sandwich_coef: Annotated[
            int | None, Flag("sandwich_coef", "so many a first and f last (1911.03864)", least=1)
        ] = None,
        tied: Annotated[
            bool, Flag("weight_tie_layers", "one block runs `depth` times (ALBERT, 1909.11942)")
        ] = False,
    ) -> None:
        self.halves = macaron
        block = _block(cross_attend, only_cross, macaron)
        if custom_layers is not None:
            given = {"depth": depth, "cross_attend": cross_attend, "only_cross": only_cross}
            given |= {"sandwich_coef": sandwich_coef, "weight_tie_layers": tied}
            self.kinds = _custom(custom_layers, given)
        elif depth is None:
            raise FlagError(
                [Finding("depth", "`depth` is required: number of blocks (or give `custom_layers`)")]
            )
        elif sandwich_coef is not None:
            self.kinds = _sandwich(block, depth, sandwich_coef, only_cross, tied)
        else:
            self.kinds = block if tied else block * depth
        repeats = depth if tied and depth is not None else 1
        self.order = tuple(range(len(self.kinds))) * repeats


def _block(cross_attend: bool, only_cross: bool, macaron: bool) -> tuple[str, ...]:
    if cross_attend and only_cross:
        text = "`cross_attend` and `only_cross` cannot be combined, because blocks are a-c-f or c-f; keep one"
        raise FlagError([Finding("cross_attend", text)])
    block = ("c", "f") if only_cross else ("a", "c", "f") if cross_attend else ("a", "f")
    return ("f", *block) if macaron else block


def _custom(layers: tuple[str, ...] | str, given: dict[str, int | bool | None]) -> tuple[str, ...]:
    findings = [
        Finding(name, f"`{name}` and `custom_layers` cannot be combined, because both order the sublayers")
        for name, value in given.items()
        if value
    ]
    kinds = tuple(layers)
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        what = f"holds {wrong[0]!r}" if wrong else "is empty"
        text = f"`custom_layers` must be a sequence of 'a', 'c' and 'f', but {what}"
        findings.append(Finding("custom_layers", text))
    if findings:
        raise FlagError(findings)
    return kinds


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
