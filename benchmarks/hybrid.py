"""A hybrid of gated DeltaNet and attention against attention alone: training, decoding and decode state.

    python benchmarks/hybrid.py [--rounds 5] [--cached 1024 8192] [--json FILE] [--threads 2]
                                [--clock wall|cpu]

See README.md in this directory for what is measured and how to read it.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import flagformer
from report import machine
from timing import CLOCKS, interleave, ratio

SIZE = {
    "num_tokens": 256, "max_seq_len": 16384, "dim": 256, "depth": 4, "heads": 4, "attn_dim_head": 64,
    "use_abs_pos_emb": False, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "ff_no_bias": True,
}  # fmt: skip
MODELS = {
    "attention": {"rotary_pos_emb": True},
    "3 gated_deltanet : 1 attention": {
        "rotary_pos_emb": True, "mixer": "3 gated_deltanet : 1 attention",
    },
    "gated_deltanet": {"mixer": "gated_deltanet"},
}  # fmt: skip
BATCH, LENGTH, BLOCK, STEPS = 2, 512, 1024, 16


def trained(model: torch.nn.Module) -> Callable[[], None]:
    """Gradients to zero, forward, cross entropy on all positions, backward: 2 rows of 512 tokens."""
    ids = torch.randint(256, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        model.train().zero_grad(set_to_none=True)
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()

    step()
    return step


class Session:
    """A decode state of one row that holds `cached` tokens; each call decodes 16 more, greedily."""

    def __init__(self, model: torch.nn.Module, cached: int, calls: int) -> None:
        self.model = model.eval()
        self.state = model.init_state(1, cached + (calls + 1) * STEPS)
        ids = torch.randint(256, (1, cached), generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            for block in ids.split(BLOCK, dim=1):
                self.token = self._next(block)
        self()

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(STEPS):
            self.token = self._next(self.token)

    def _next(self, ids: Tensor) -> Tensor:
        return self.model(ids, state=self.state)[:, -1:].argmax(dim=-1)


def measure(options: argparse.Namespace) -> list[dict]:
    torch.manual_seed(0)
    models = {name: flagformer.build({**SIZE, **flags}) for name, flags in MODELS.items()}
    steps = {name: trained(model) for name, model in models.items()}
    rows = [
        {
            "row": "train",
            "unit": "ms",
            "units": 1,
            "seconds": interleave(steps, options.rounds, options.clock),
        }
    ]
    for cached in options.cached:
        sessions = {name: Session(model, cached, options.rounds) for name, model in models.items()}
        sizes = {name: model.init_state(1, cached).size_bytes() for name, model in models.items()}
        seconds = interleave(sessions, options.rounds, options.clock)
        rows.append(
            {
                "row": f"decode/{cached}",
                "unit": "ms/token",
                "units": STEPS,
                "seconds": seconds,
                "state": sizes,
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    """Medians, and ratios to attention in the same round."""
    print("| row | model | median | by attention's | state, KiB | by attention's |\n" + "|---" * 6 + "|")
    for row in rows:
        base, sizes = row["seconds"]["attention"], row.get("state", {})
        for name, seconds in row["seconds"].items():
            time = f"{statistics.median(seconds) / row['units'] * 1e3:.2f} {row['unit']}"
            state = f"{sizes[name] / 1024:.0f} | {sizes[name] / sizes['attention']:.3f}" if sizes else " | "
            print(f"| {row['row']} | {name} | {time} | {ratio(seconds, base):.2f} | {state} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cached", nargs="*", type=int, default=[1024, 8192], help="tokens of the state")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine with company"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    show(rows)
    if options.json:
        found = {"machine": machine(), "clock": options.clock, "size": SIZE, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
