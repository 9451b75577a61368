"""Error rates, coverage and power of the verdicts of studies, by simulation.

    python benchmarks/study_statistics.py                                    # 10,000 studies a setting
    python benchmarks/study_statistics.py --studies 1000 --fresh 24 --seed 7
    python benchmarks/study_statistics.py --factorial --fresh 40              # factorial studies alone

Settings are those named below, and as many more as `--fresh` says, drawn by `--seed`: 1 to 20 variants, 2 to
10 seeds, seven noises, four patterns of variance up to 4 to 1, correlation 0 to 0.9. Each line is one
setting; the summary at the end compares the worst rates with the bounds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flagformer.lab.study.cells import Contrast, contrasts
from flagformer.lab.study.verdicts import LEVEL, Verdicts, judge

FALSE, FALSE_BAD, COVERED = 0.055, 0.07, 0.94  # bounds of errors, with rare bad seeds, and of coverage
BLOCK = 1000  # studies simulated together


@dataclass(frozen=True)
class Setting:
    """One kind of study: `spread` is the pattern of variances, `correlation` that of two runs of a seed."""

    variants: int
    seeds: int
    noise: str = "normal"
    spread: str = "equal"
    correlation: float = 0.0
    fresh: bool = False

    @property
    def bad_seeds(self) -> bool:
        return self.noise.startswith("bad")


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gamma with shape 2, centred."""
    return (draw.gamma(2.0, size=shape) - 2) / math.sqrt(2)


def bad(share: float) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """Normal, with a share of bad seeds of five standard deviations, centred."""
    return lambda draw, shape: draw.normal(size=shape) + 5 * ((draw.random(shape) < share) - share)


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda draw, shape: draw.normal(size=shape),
    "uniform": lambda draw, shape: draw.uniform(-math.sqrt(3), math.sqrt(3), shape),
    "skewed": skewed,
    "skewed down": lambda draw, shape: -skewed(draw, shape),
    "heavy, t of 3": lambda draw, shape: draw.standard_t(3, shape) / math.sqrt(3),
    "bad seeds, 1 of 10": bad(0.1),
    "bad seeds, 1 of 30": bad(1 / 30),
}
SPREADS: dict[str, Callable[[int], np.ndarray]] = {
    "equal": lambda rows: np.ones(rows),
    "baseline x 4": lambda rows: np.r_[4.0, np.ones(rows - 1)],
    "baseline x 1/4": lambda rows: np.r_[0.25, np.ones(rows - 1)],
    "rising to x 4": lambda rows: np.geomspace(1.0, 4.0, rows),
}


def named() -> list[Setting]:
    """The settings that the bounds name."""
    shapes = [(1, 2), (1, 3), (1, 5), (1, 10), (3, 3), (5, 3), (5, 5), (10, 2), (10, 3), (10, 5), (10, 10)]
    found = [Setting(k, n, correlation=r) for k, n in shapes for r in (0.0, 0.4, 0.8)]
    found += [Setting(k, n, noise) for k, n in shapes for noise in list(NOISES)[2:]]
    return found + [Setting(k, n, spread=spread) for k, n in shapes for spread in list(SPREADS)[1:]]


def fresh(count: int, seed: int) -> Iterator[Setting]:
    """Settings drawn at random."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield Setting(
            int(draw.integers(1, 21)), int(draw.integers(2, 11)), str(draw.choice(list(NOISES))),
            str(draw.choice(list(SPREADS))), float(round(draw.uniform(0, 0.9), 2)), fresh=True,
        )  # fmt: skip


def runs_of(setting: Setting, draw: np.random.Generator, studies: int) -> np.ndarray:
    """Losses without any effect: [studies, variants + 1, seeds]."""
    shape, noise = (studies, setting.variants + 1, setting.seeds), NOISES[setting.noise]
    shared = noise(draw, (studies, 1, setting.seeds))
    own = noise(draw, shape)
    runs = math.sqrt(setting.correlation) * shared + math.sqrt(1 - setting.correlation) * own
    return runs * np.sqrt(SPREADS[setting.spread](setting.variants + 1))[:, None]


def rates(setting: Setting, studies: int, seed: int) -> dict[str, float]:
    """Shares of the studies with a false verdict under the null, with all differences covered, with a false
    verdict where a third of the variants are real, and with a false "equivalent" where all are at the margin;
    and the power at 2 and 4 standard deviations of one variant."""
    draw = np.random.default_rng((seed, setting.variants, setting.seeds, int(setting.correlation * 100)))
    effects = np.where(np.arange(setting.variants) % 3 == 0, 3.0, 0.0)
    margin = 2.0
    counts: dict[str, list[float]] = {}
    for start in range(0, studies, BLOCK):
        runs = runs_of(setting, draw, min(BLOCK, studies - start))
        null, mixed = judge(runs), judge(_moved(runs, effects))
        edge = judge(_moved(runs, np.full(setting.variants, margin)), margin=margin)
        one = {size: judge(_moved(runs, np.r_[-size, np.zeros(setting.variants - 1)])) for size in (2.0, 4.0)}
        assert edge.equivalent is not None
        block = {
            "false": (null.better | null.worse).any(-1),
            "covered": ((null.low <= 0) & (null.high >= 0)).all(-1),
            "false, mixed": ((mixed.better | mixed.worse) & (effects == 0) | mixed.better).any(-1),
            "covered, mixed": ((mixed.low <= effects) & (effects <= mixed.high)).all(-1),
            "false equivalent": edge.equivalent.any(-1),
            **{f"power at {size:g} sd": found.better[:, 0] for size, found in one.items()},
        }
        for name, values in block.items():
            counts.setdefault(name, []).append(float(values.sum()))
    return {name: sum(values) / studies for name, values in counts.items()}


@dataclass(frozen=True)
class Factorial:
    """One kind of factorial study: `levels` of each factor, `tied` the part of a run's variance that all
    cells of a seed share, `ratio` the standard deviation in the last cell relative to the first."""

    levels: tuple[int, ...]
    variants: int
    seeds: int
    noise: str
    tied: float
    ratio: float


def factorials(count: int, seed: int) -> Iterator[Factorial]:
    """Factorial studies drawn at random."""
    draw = np.random.default_rng((seed, 1))
    shapes = [(2,), (3,), (4,), (2, 2)]
    for _ in range(count):
        yield Factorial(
            shapes[int(draw.integers(4))], int(draw.integers(1, 11)), int(draw.integers(3, 9)),
            str(draw.choice(list(NOISES))), float(draw.choice([0.0, 0.4, 0.8])),
            float(draw.choice([1.0, 1.7, 3.0])),
        )  # fmt: skip


def factorial_rates(setting: Factorial, studies: int, seed: int) -> dict[str, float]:
    """Shares of the studies with any false answer under the null, and with a false interaction where every
    variant differs by 3 standard deviations in every cell; and the power for 4 in the last cell alone."""
    draw = np.random.default_rng((seed, setting.variants, setting.seeds))
    asked = contrasts({str(index): list(range(size)) for index, size in enumerate(setting.levels)})
    cells, noise = math.prod(setting.levels), NOISES[setting.noise]
    scale = np.geomspace(1.0, setting.ratio, cells)[:, None, None]
    counts: dict[str, float] = {}
    for start in range(0, studies, BLOCK):
        block = min(BLOCK, studies - start)
        shared = noise(draw, (block, 1, setting.variants + 1, setting.seeds))
        own = noise(draw, (block, cells, setting.variants + 1, setting.seeds))
        runs = (math.sqrt(setting.tied) * shared + math.sqrt(1 - setting.tied) * own) * scale
        everywhere, last = np.array(runs), np.array(runs)
        everywhere[:, :, 1:] += 3.0
        last[:, -1, 1] -= 4.0 * setting.ratio
        null, real, one = (_answers(values, asked) for values in (runs, everywhere, last))
        changes = [name for name, contrast in enumerate(asked) if contrast.kind == "interaction"]
        for name, values in {
            "false": np.any([_any(found) for found in null], axis=0),
            "false interaction": np.any([_any(real[index]) for index in changes], axis=0),
            "power in the cell": one[cells - 1].better[:, 0],
            "power of the interaction": np.any([_first(one[index]) for index in changes], axis=0),
        }.items():
            counts[name] = counts.get(name, 0.0) + float(values.sum())
    return {name: value / studies for name, value in counts.items()}


def _answers(runs: np.ndarray, asked: list[Contrast]) -> list[Verdicts]:
    level = LEVEL / len(asked)
    return [judge(np.einsum("c,sckn->skn", one.weights, runs), level=level) for one in asked]


def _any(found: Verdicts) -> np.ndarray:
    return np.asarray((found.better | found.worse).any(-1))


def _first(found: Verdicts) -> np.ndarray:
    return np.asarray((found.better | found.worse)[:, 0])


def factorial_main(count: int, studies: int, seed: int) -> None:
    """Simulate factorial studies, print their rates and the worst."""
    rows = []
    for setting in factorials(count, seed):
        found = factorial_rates(setting, studies, seed)
        rows.append((setting, found))
        print(setting, {name: round(value, 4) for name, value in found.items()}, flush=True)
    for name in ("false", "false interaction"):
        for bad_seeds, bound in ((False, FALSE), (True, FALSE_BAD)):
            these = [row for row in rows if row[0].noise.startswith("bad") == bad_seeds]
            if these:
                setting, found = max(these, key=lambda row: row[1][name])
                worst = f"{name} at most {found[name]:.3f} (bound {bound})"
                print(f"{len(these)} factorial settings: {worst}, {setting}")


def _moved(runs: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """The studies with an effect on every variant."""
    return runs + np.r_[0.0, effects][:, None]


def summary(rows: list[tuple[Setting, dict[str, float]]]) -> list[str]:
    """The worst rates, against their bounds."""
    lines = []
    for label, chosen in (("named", False), ("fresh", True)):
        some = [(s, r) for s, r in rows if s.fresh == chosen]
        for bad_seeds, bound in ((False, FALSE), (True, FALSE_BAD)):
            these = [(s, r) for s, r in some if s.bad_seeds == bad_seeds]
            if not these:
                continue
            kind = f"{label} settings{', rare bad seeds' if bad_seeds else ''} ({len(these)})"
            for name in ("false", "false, mixed", "false equivalent"):
                setting, found = max(these, key=lambda row: row[1][name])
                lines.append(f"{kind}: {name} at most {found[name]:.3f} (bound {bound}) in {setting}")
            for name in ("covered", "covered, mixed"):
                setting, found = min(these, key=lambda row: row[1][name])
                lines.append(f"{kind}: {name} at least {found[name]:.3f} (bound {COVERED}) in {setting}")
    for setting, found in rows:
        if (setting.variants, setting.noise, setting.spread) == (10, "normal", "equal") and not setting.fresh:
            power = ", ".join(f"{name} {value:.2f}" for name, value in found.items() if "power" in name)
            lines.append(f"10 variants, {setting.seeds} seeds, correlation {setting.correlation}: {power}")
    return lines


def main() -> None:
    """Simulate every setting, print its rates and the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000, help="simulated studies of a setting")
    parser.add_argument("--fresh", type=int, default=64, help="settings drawn at random")
    parser.add_argument("--only-fresh", action="store_true", help="leave out the named settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rates to this file")
    parser.add_argument("--factorial", action="store_true", help="simulate factorial studies alone")
    given = parser.parse_args()
    if given.factorial:
        factorial_main(given.fresh, given.studies, given.seed)
        return
    rows = []
    for setting in [*([] if given.only_fresh else named()), *fresh(given.fresh, given.seed)]:
        found = rates(setting, given.studies, given.seed)
        rows.append((setting, found))
        print(setting, {name: round(value, 4) for name, value in found.items()}, flush=True)
    error = math.sqrt(0.05 * 0.95 / given.studies)
    print("\n".join([*summary(rows), f"standard error of a rate near 0.05: {error:.4f}"]))
    if given.json:
        given.json.write_text(json.dumps([{**asdict(s), **r} for s, r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
