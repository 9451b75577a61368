"""Attention within clusters against attention to everything: time by length, with the exponent it grows by.

    python benchmarks/routing.py                    # 1k to 16k, one thread, several minutes
    python benchmarks/routing.py --lengths 1024 2048 --rounds 1 --json mine.json --plot mine.png

One attention layer (d 512, 8 heads of 64, window 128, one cluster a window) in this library: dense, local,
routing with own and with shared keys; and, where it is installed, routing-transformer's. Every contender runs
once a round, in an order that turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flagformer
from report import machine
from timing import interleave

DIM, HEADS, WIDTH, WINDOW, VOCABULARY = 512, 8, 64, 128, 64
FAMILIES: dict[str, dict[str, Any]] = {
    "dense": {},
    "local": {"n_local_attn_heads": HEADS, "local_attn_window_size": WINDOW},
    "routing": {"window_size": WINDOW},
    "routing, shared keys": {"window_size": WINDOW, "shared_qk": True},
}
PEER = "routing-transformer"


def flags_of(family: str, length: int) -> dict[str, Any]:
    clusters = {"num_clusters": max(length // WINDOW, 1)} if "routing" in family else {}
    sizes = {"dim": DIM, "heads": HEADS, "attn_dim_head": WIDTH, "custom_layers": "a"}
    return {**sizes, **clusters, **FAMILIES[family]}


def layers(length: int, peer: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each contender as a function from vectors to vectors, in training mode."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        found[family] = flagformer.Decoder(**flags_of(family, length)).train()
    if peer:
        from routing_transformer.routing_transformer import SelfAttention

        torch.manual_seed(0)
        # no local heads; its own default of separate keys for what is not shared
        theirs = SelfAttention(DIM, 1, length, HEADS, 0, WINDOW, dim_head=WIDTH, causal=True).train()
        found[PEER] = partial(_first, theirs)
    return found


def _first(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[0]


def train(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Forward and backward, to the input too."""
    layer(x.detach().requires_grad_()).sum().backward()


def forward(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


@torch.inference_mode()
def decoder(family: str, length: int) -> Callable[[], None]:
    """One token behind `length` others, again and again at the same place."""
    torch.manual_seed(0)
    model = flagformer.build(
        {
            **flags_of(family, length),
            "num_tokens": VOCABULARY,
            "max_seq_len": 0,
            "rotary_pos_emb": True,
        }
    ).eval()
    state = model.init_state(1, length + 2)
    model(torch.randint(VOCABULARY, (1, length)), state=state)
    token = torch.zeros(1, 1, dtype=torch.long)
    model(token, state=state)  # what is made once behind a block of tokens is made here

    @torch.inference_mode()
    def steps() -> None:
        for _ in range(STEPS):
            state.length = length
            rings = state.cores.get(0)
            if rings is not None:
                rings.length = length  # the ring gets the same place again: its cost, not its content, counts
            model(token, state=state)

    return steps


STEPS = 20


def exponent(lengths: list[int], seconds: list[float]) -> float:
    """The slope of a straight line through the logarithms."""
    x, y = [math.log(n) for n in lengths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def measure(lengths: list[int], rounds: int, clock: str, peer: bool) -> dict[str, dict[str, list[float]]]:
    """what -> contender -> median seconds at each length."""
    found: dict[str, dict[str, list[float]]] = {"forward": {}, "forward + backward": {}, "decode": {}}
    for length in lengths:
        x = torch.randn(1, length, DIM)
        contenders = layers(length, peer)
        for what, work in (("forward", forward), ("forward + backward", train)):
            works = {name: partial(work, layer, x) for name, layer in contenders.items()}
            _note(found[what], interleave(works, rounds + 1, clock), 1)
        steps = {name: decoder(name, length) for name in FAMILIES}
        _note(found["decode"], interleave(steps, rounds + 1, clock), STEPS)
        print(f"{length} done", flush=True)
    return found


def _note(into: dict[str, list[float]], samples: dict[str, list[float]], units: int) -> None:
    for name, times in samples.items():
        into.setdefault(name, []).append(statistics.median(times[1:]) / units)  # the first warms up


def table(what: str, lengths: list[int], rows: dict[str, list[float]]) -> str:
    lines = [
        f"| {what}, ms | " + " | ".join(map(str, lengths)) + " | exponent |",
        "|" + "---|" * (len(lengths) + 2),
    ]
    for name, seconds in rows.items():
        cells = " | ".join(f"{1e3 * s:.3g}" for s in seconds)
        slope = f"{exponent(lengths, seconds):.2f}" if len(lengths) > 1 else ""
        lines.append(f"| {name} | {cells} | {slope} |")
    return "\n".join(lines)


def plot(path: Path, lengths: list[int], found: dict[str, dict[str, list[float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(5 * len(found), 4))
    for axis, (what, rows) in zip(axes, found.items()):
        for name, seconds in rows.items():
            slope = f" (n^{exponent(lengths, seconds):.2f})" if len(lengths) > 1 else ""
            axis.loglog(lengths, [1e3 * s for s in seconds], marker="o", label=name + slope)
        axis.set(title=what, xlabel="tokens", ylabel="ms")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        import routing_transformer  # noqa: F401

        peer = True
    except ImportError:
        peer = False
    found = measure(options.lengths, options.rounds, options.clock, peer)
    for what, rows in found.items():
        print("\n" + table(what, options.lengths, rows))
    if options.json:
        record = {"machine": machine(), "clock": options.clock, "lengths": options.lengths, "seconds": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(options.plot, options.lengths, found)


if __name__ == "__main__":
    main()
