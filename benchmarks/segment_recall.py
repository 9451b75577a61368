"""Recall of symbols of the first segment in later segments: slots, XL memories, neither.

    python benchmarks/segment_recall.py [--only NAME ...] [--seeds 0 1 2] [--steps 400] [--json FILE]
                                        [--figure FILE] [--threads 1]

Models of two layers of width 64 learn `segment_recall` on rows of 5 segments of 8 tokens, with the gradient
through all of them, and are evaluated at each delay of the training, and at 10, 16 and 40.
"""

import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import flagformer
from flagformer.lab.data.segment_recall import SegmentRecall
from learned import arguments, collect

TASK = SegmentRecall(source="segment_recall")
SEGMENTS, BATCH, RATE, WARMUP = 5, 64, 2e-3, 40
DELAYS = (1, 2, 3, 4, 10, 16, 40)
SIZES = {
    "num_tokens": TASK.num_tokens, "max_seq_len": TASK.segment, "dim": 64, "depth": 2, "heads": 4,
    "attn_dim_head": 16,
}  # fmt: skip
SLOTS = {"cross_attend": True, "num_memory_slots": 8}
MODELS = {
    "bmn": {**SLOTS, "memory_update": "bmn"},
    "gru": {**SLOTS, "memory_update": "gru"},
    "xl": {"max_mem_len": TASK.segment, "rotary_pos_emb": True},
    "plain": {},
}


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Segment by segment; [B, T, V]."""
    remembers = model.num_memory_slots or model.max_mem_len
    pieces, mems = [], None
    for part in ids.split(TASK.segment, dim=1):
        if remembers:
            logits, mems = model(part, mems=mems, return_mems=True, detach_mems=False)
        else:
            logits = model(part)
        pieces.append(logits)
    return torch.cat(pieces, dim=1)


def train(name: str, seed: int, steps: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = flagformer.build({**SIZES, **MODELS[name]}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, max(0.02, 1 - step / steps))
    )
    for step in range(steps):
        inputs, targets = TASK.batch("train", step, seed, BATCH, SEGMENTS * TASK.segment)
        loss = F.cross_entropy(logits_of(model, inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, delay: int) -> float:
    task = TASK.model_copy(update={"delay": delay})
    inputs, targets = task.batch("test", 0, 0, 256, (1 + delay) * TASK.segment)
    asked = targets != -100
    return float((logits_of(model, inputs).argmax(dim=-1) == targets)[asked].float().mean())


def draw(path: Path, rows: list[dict]) -> None:
    """Accuracy against the delay: a line a model, the mean of its seeds, and a point a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = [row for row in rows if row["name"] == name]
        means = [statistics.mean(row["accuracy"][str(delay)] for row in mine) for delay in DELAYS]
        axis.plot(DELAYS, means, marker="o", markersize=3, color=f"C{place}", label=name)
        for row in mine:
            axis.plot(DELAYS, [row["accuracy"][str(d)] for d in DELAYS], ".", color=f"C{place}", alpha=0.4)
    axis.axhline(TASK.chance, color="grey", linestyle=":", label="chance")
    axis.axvspan(1, SEGMENTS - 1, color="grey", alpha=0.12, label="trained delays")
    axis.set(xscale="log", xlabel="delay (segments)", ylabel="share recalled", ylim=(0, 1.03))
    axis.set_xticks(DELAYS, [str(delay) for delay in DELAYS])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = arguments(__doc__, list(MODELS))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print("| model | steps | seed | " + " | ".join(f"delay {delay}" for delay in DELAYS) + " | CPU s |")
    print("|---" * (4 + len(DELAYS)) + "|")
    for name in options.only:
        for seed in options.seeds:
            start = time.process_time()
            model = train(name, seed, options.steps)
            seconds = time.process_time() - start
            found = {str(delay): round(accuracy(model, delay), 4) for delay in DELAYS}
            label = name if options.steps == 400 else f"{name}, {options.steps} steps"
            rows.append(
                {"name": label, "steps": options.steps, "seed": seed, "accuracy": found, "seconds": seconds}
            )
            shown = " | ".join(f"{value:.2f}" for value in found.values())
            print(f"| {name} | {options.steps} | {seed} | {shown} | {seconds:.0f} |", flush=True)
    rows = collect(options.json, rows)
    if options.figure is not None:
        draw(options.figure, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
