"""The result as JSON (every sample) and as a Markdown table (medians and ratios)."""

import json
import platform
import statistics
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from timing import ratio

COLUMNS = ("bare", "flagformer", "x-transformers", "HF Llama")


def header() -> str:
    titles = [
        "row",
        "unit",
        *COLUMNS,
        *(f"{name} / bare" for name in COLUMNS[1:]),
        "flagformer / x-transformers",
    ]
    return "| " + " | ".join(titles) + " |\n|" + "---|" * len(titles)


def line(result: dict) -> str:
    """One table line; cells of a library without such a model are empty."""
    samples, scale = result["seconds"], 1e3 / result["units"]
    cells = [result["row"], result["unit"]]
    for name in COLUMNS:
        note = f" ({result['settings'][name]})" if result["settings"].get(name) else ""
        cells.append(f"{statistics.median(samples[name]) * scale:.3g}{note}" if name in samples else "")
    for name in COLUMNS[1:]:
        cells.append(_ratio(samples, name, "bare"))
    cells.append(_ratio(samples, "flagformer", "x-transformers"))
    return "| " + " | ".join(cells) + " |"


def _ratio(samples: dict[str, list[float]], over: str, under: str) -> str:
    if over not in samples or under not in samples:
        return ""
    pairs = sorted(a / b for a, b in zip(samples[over], samples[under], strict=True))
    return f"{ratio(samples[over], samples[under]):.3f} [{pairs[0]:.2f}, {pairs[-1]:.2f}]"


def machine() -> dict[str, object]:
    return {
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {
            name: installed(name) for name in ("torch", "flagformer", "x-transformers", "transformers")
        },
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from source"


def write(path: Path, results: list[dict], quick: bool, clock: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), "quick": quick, "clock": clock, "rows": results}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
