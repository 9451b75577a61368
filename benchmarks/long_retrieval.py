"""Retrieval of one key-value pair after thousands of tokens: routing heads against local heads.

    python benchmarks/long_retrieval.py [--only NAME ...] [--seeds 0 1 2] [--steps 250 60 60 60]
                                        [--json FILE] [--figure FILE] [--threads 1]

Models of two layers of width 64 learn `long_retrieval` on rows of 64 tokens, then of 256, 1024 and 4096, 16k
tokens a step, and are evaluated at each of these lengths. Both kinds of heads attend to the token before, to
their own, and to 64 tokens: the nearest, or the most recent of one of 64 clusters.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

import flagformer
from flagformer.lab.data.long_retrieval import LongRetrieval
from learned import arguments, collect

TASK = LongRetrieval(source="long_retrieval")
LENGTHS, TOKENS = (64, 256, 1024, 4096), 1 << 14
RATE, WARMUP, WINDOW, ASKED = 3e-3, 40, 64, 256
SIZES = {
    "num_tokens": TASK.num_tokens, "max_seq_len": 0, "dim": 64, "depth": 2, "heads": 4, "attn_dim_head": 16,
    "shift_tokens": 1, "attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "use_abs_pos_emb": False,
}  # fmt: skip
MODELS = {
    "routing": {
        "num_clusters": 64, "window_size": WINDOW, "kmeans_ema_decay": 0.9, "commitment_factor": 1e-3,
    },
    "local": {"n_local_attn_heads": 4, "local_attn_window_size": WINDOW},
}  # fmt: skip


def train(name: str, seed: int, steps: Sequence[int]) -> tuple[torch.nn.Module, list[float]]:
    """The model, and the loss of each step."""
    torch.manual_seed(seed)
    model = flagformer.build({**SIZES, **MODELS[name]}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, max(0.05, 1 - step / sum(steps)))
    )
    losses = []
    for length, count in zip(LENGTHS, steps):
        for step in range(count):
            inputs, targets = TASK.batch("train", step, seed, TOKENS // length, length)
            logits, outputs = model(inputs, return_losses=True)
            loss = F.cross_entropy(logits[:, -1], targets[:, -1])
            optimizer.zero_grad()
            (loss + (outputs.extra_loss if outputs.extra_loss is not None else 0)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            flagformer.update_kmeans(model)
            schedule.step()
            losses.append(loss.item())
    return model.eval(), losses


@torch.no_grad()
def accuracy(model: torch.nn.Module, length: int) -> float:
    """The fraction of values found; chance is 1 / 16."""
    inputs, targets = TASK.batch("test", 0, 0, ASKED, length)
    found = [model(part)[:, -1].argmax(dim=-1) for part in inputs.split(max(TOKENS // length, 1))]
    return float((torch.cat(found) == targets[:, -1]).float().mean())


def draw(path: Path, rows: list[dict]) -> None:
    """Loss against steps: a thin line a seed, smoothed over ten steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for place, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        for number, row in enumerate(row for row in rows if row["name"] == name):
            smooth = [
                statistics.mean(row["losses"][max(i - 9, 0) : i + 1]) for i in range(len(row["losses"]))
            ]
            axis.plot(smooth, color=f"C{place}", linewidth=1, label=None if number else name)
    for length, start in zip(LENGTHS, rows[0]["starts"]):
        axis.axvline(start, color="grey", linestyle=":", linewidth=0.8)
        axis.text(start, axis.get_ylim()[1], f" {length} tokens", fontsize=7, va="top")
    axis.set(xlabel="step", ylabel="cross entropy of the value, nats")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = arguments(__doc__, list(MODELS))
    parser.add_argument("--steps", nargs=len(LENGTHS), type=int, default=[250, 60, 60, 60])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print("| heads | seed | " + " | ".join(f"{length} tokens" for length in LENGTHS) + " | CPU s |")
    print("|---" * (3 + len(LENGTHS)) + "|")
    for seed in options.seeds:
        for name in options.only:
            start = time.process_time()
            model, losses = train(name, seed, options.steps)
            seconds = time.process_time() - start
            found = {str(length): round(accuracy(model, length), 4) for length in LENGTHS}
            starts = [sum(options.steps[:i]) for i in range(len(LENGTHS))]
            row = {"name": name, "seed": seed, "starts": starts, "accuracy": found, "seconds": seconds}
            rows.append({**row, "losses": [round(loss, 4) for loss in losses]})
            shown = " | ".join(f"{value:.3f}" for value in found.values())
            print(f"| {name} | {seed} | {shown} | {seconds:.0f} |", flush=True)
    rows = collect(options.json, rows)
    if options.figure is not None:
        draw(options.figure, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
