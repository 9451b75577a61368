"""Attention within clusters against dense attention: time by length, with the exponent of its growth.

    python benchmarks/routing.py                    # 1k to 16k, one thread, several minutes
    python benchmarks/routing.py --lengths 1024 2048 --rounds 1 --json mine.json --plot mine.png
    python benchmarks/routing.py --lengths 8192 --window 512     # 16 clusters, as in the paper
    python benchmarks/routing.py --lengths 8192 --batch 4        # four rows a step
    python benchmarks/routing.py --lengths 8192 --compile        # training, all by torch.compile

One attention layer (d 512, 8 heads of 64, window 128, one cluster a window) in this library: dense, local,
routing with separate and with shared keys; and, if installed, routing-transformer's between norms and
with the same residual. Auxiliary losses are included in both. The same without projections and norms,
for given queries, keys and values ("attention alone"). Every contender runs once a round, in rotating
order.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flagformer
from flagformer.flow import OutputCollector
from report import machine
from timing import interleave

DIM, HEADS, WIDTH, VOCABULARY = 512, 8, 64, 64
FAMILIES = ("dense", "local", "routing", "routing, shared keys")
PEER = "routing-transformer"


class Size(NamedTuple):
    """Tokens of the row, and the number of keys of a query."""

    length: int
    window: int

    @property
    def clusters(self) -> int:
        return max(self.length // self.window, 1)


def flags_of(family: str, size: Size) -> dict[str, Any]:
    flags = {"dim": DIM, "heads": HEADS, "attn_dim_head": WIDTH, "custom_layers": "a"}
    if family == "local":
        return {**flags, "n_local_attn_heads": HEADS, "local_attn_window_size": size.window}
    if family == "dense":
        return flags
    shared = {"shared_qk": True} if "shared" in family else {}
    return {**flags, "num_clusters": size.clusters, "window_size": size.window, **shared}


Work = Callable[..., tuple[Tensor, Tensor]]  # vectors, and the auxiliary loss


def layers(size: Size, families: list[str], peer: bool) -> dict[str, Work]:
    """Each contender as a function of vectors, in training mode."""
    found: dict[str, Work] = {family: partial(_whole, _layer(family, size)) for family in families}
    if peer:
        from routing_transformer.routing_transformer import SelfAttention

        torch.manual_seed(0)
        # no local heads; its own default of separate keys for unshared ones
        theirs = SelfAttention(DIM, 1, size.length, HEADS, 0, size.window, dim_head=WIDTH, causal=True)
        found[PEER] = partial(_theirs, nn.ModuleList([nn.LayerNorm(DIM), theirs, nn.LayerNorm(DIM)]).train())
    return found


def _layer(family: str, size: Size) -> flagformer.Decoder:
    torch.manual_seed(0)
    layer = flagformer.Decoder(**flags_of(family, size))
    layer.train()
    return layer


def _whole(layer: flagformer.Decoder, x: Tensor) -> tuple[Tensor, Tensor]:
    collector = OutputCollector()
    return layer(x, collector=collector), _auxiliary(collector)


def _auxiliary(collector: OutputCollector) -> Tensor:
    none = torch.zeros((), requires_grad=True)
    return sum((loss for losses in collector.losses.values() for loss in losses), none)


def _theirs(parts: nn.ModuleList, x: Tensor) -> tuple[Tensor, Tensor]:
    before, attention, after = parts
    out, loss = attention(before(x))
    return after(x + out), loss.squeeze()


def alone(size: Size, peer: bool) -> dict[str, Work]:
    """Functions of queries, keys and values, [B, T, D] each."""
    layer = _layer("routing", size)
    core, given = layer.sublayers[0].fn.core, []
    hook = core.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    layer(torch.randn(1, size.length, DIM), collector=OutputCollector())
    hook.remove()
    _, kv, side = given[0]

    def ours(*given: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = map(_heads, given)
        own = replace(side, collector=OutputCollector())
        out = core(q, kv._replace(k=k, v=v, content=(q, k)), own)
        return out, _auxiliary(own.collector)

    found = {"routing": ours}
    if peer:
        from routing_transformer.routing_transformer import KmeansAttention

        torch.manual_seed(0)
        attention = KmeansAttention(size.clusters, size.window, HEADS, WIDTH, causal=True).train()

        def theirs(*given: Tensor) -> tuple[Tensor, Tensor]:
            out, loss = attention(*(_heads(part).contiguous() for part in given))
            return out, loss.squeeze()

        found[PEER] = theirs
    return found


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


def train(work: Work, *inputs: Tensor) -> None:
    """Forward and backward, including the gradients of inputs."""
    out, loss = work(*(x.detach().requires_grad_() for x in inputs))
    torch.autograd.backward((out, loss), (_gradient(out.shape), torch.ones(())))


@cache
def _gradient(shape: torch.Size) -> Tensor:
    """Like that of a model: different for each token."""
    if len(shape) == 3:
        return torch.randn(shape)
    batch, heads, length, width = shape
    return torch.randn(batch, length, heads, width).transpose(1, 2)


def forward(work: Work, x: Tensor) -> None:
    with torch.no_grad():
        work(x)


@torch.inference_mode()
def decoder(family: str, size: Size) -> Callable[[], None]:
    """Decode one token after a cached row, repeatedly at the same position."""
    torch.manual_seed(0)
    model = flagformer.build(
        {
            **flags_of(family, size),
            "num_tokens": VOCABULARY,
            "max_seq_len": 0,
            "rotary_pos_emb": True,
        }
    ).eval()
    state = model.init_state(1, size.length + 2)
    model(torch.randint(VOCABULARY, (1, size.length)), state=state)
    token = torch.zeros(1, 1, dtype=torch.long)
    model(token, state=state)  # tables built once after a block of tokens are built here

    @torch.inference_mode()
    def steps() -> None:
        for _ in range(STEPS):
            state.length = size.length
            rings = state.cores.get(0)
            if rings is not None:
                rings.length = (
                    size.length
                )  # the ring buffer gets the same position again: its cost counts, its content does not
            model(token, state=state)

    return steps


STEPS = 20


SPAN = (2048, 16384)  # lengths for the exponent, if there are two


def exponent(seconds: dict[int, float]) -> float:
    """The slope of a straight line through the logarithms; `seconds` by length."""
    inside = {n: s for n, s in seconds.items() if SPAN[0] <= n <= SPAN[1]}
    seconds = inside if len(inside) > 1 else seconds
    x, y = [math.log(n) for n in seconds], [math.log(s) for s in seconds.values()]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


Rows = dict[str, dict[int, float]]  # contender -> length -> median seconds


WORK = ("forward", "forward + backward", "attention alone", "decode")
TRAINED = WORK[1:3]


def measure(length: int, options: argparse.Namespace, peer: bool) -> dict[str, dict[str, float]]:
    """Median seconds of one length: kind of work -> contender -> seconds."""
    size, x = Size(length, options.window), torch.randn(options.batch, length, DIM)
    families = [name for name in options.families if name != "dense" or length <= options.dense]
    whole, cores = layers(size, families, peer), alone(size, peer)
    given = [torch.randn_like(x) for _ in range(3)]
    if options.compile:
        whole, cores = ({name: torch.compile(work) for name, work in of.items()} for of in (whole, cores))
    works = {
        "forward": {name: partial(forward, work, x) for name, work in whole.items()},
        "forward + backward": {name: partial(train, work, x) for name, work in whole.items()},
        "attention alone": {name: partial(train, work, *given) for name, work in cores.items()},
    }
    kinds = TRAINED if options.compile else tuple(works)
    found = {kind: _medians(interleave(works[kind], options.rounds + 1, options.clock), 1) for kind in kinds}
    if options.compile:
        return found
    steps = {name: decoder(name, size) for name in families}
    found["decode"] = _medians(interleave(steps, options.rounds + 1, options.clock), STEPS)
    return found


def _medians(samples: dict[str, list[float]], units: int) -> dict[str, float]:
    # the first warms up
    return {name: statistics.median(times[1:]) / units for name, times in samples.items()}


def rows_of(record: dict[str, Any], what: str) -> Rows:
    rows: Rows = {}
    for length, found in record["seconds"].items():
        for name, seconds in found[what].items():
            rows.setdefault(name, {})[int(length)] = seconds
    return rows


def table(what: str, lengths: list[int], rows: Rows) -> str:
    lines = [
        f"| {what}, ms | " + " | ".join(map(str, lengths)) + " | exponent |",
        "|" + "---|" * (len(lengths) + 2),
    ]
    for name, seconds in rows.items():
        cells = " | ".join(f"{1e3 * seconds[n]:.3g}" if n in seconds else "" for n in lengths)
        slope = f"{exponent(seconds):.2f}" if len(seconds) > 1 else ""
        lines.append(f"| {name} | {cells} | {slope} |")
    return "\n".join(lines)


def plot(path: Path, found: dict[str, Rows]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(5 * len(found), 4))
    for axis, (what, rows) in zip(axes, found.items()):
        for name, seconds in rows.items():
            slope = f" (n^{exponent(seconds):.2f})" if len(seconds) > 1 else ""
            times = [1e3 * s for s in seconds.values()]
            axis.loglog(list(seconds), times, marker="o", label=name + slope)
        axis.set(title=what, xlabel="tokens", ylabel="ms")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument(
        "--window", type=int, default=128, help="keys that a query sees, and tokens a cluster"
    )
    parser.add_argument("--batch", type=int, default=1, help="rows of a training step; decoding takes one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--dense", type=int, default=16384, help="longest row for attention to everything")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--compile", action="store_true", help="training alone, each by torch.compile")
    parser.add_argument("--json", type=Path, help="lengths that it holds are not timed again")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peer = find_spec("routing_transformer") is not None
    record = {"machine": machine(), "clock": options.clock, "threads": options.threads, "seconds": {}}
    record |= {"window": options.window, "batch": options.batch, "compiled": options.compile}
    if options.json and options.json.exists():
        record["seconds"] = json.loads(options.json.read_text(encoding="utf-8"))["seconds"]
    for length in options.lengths:
        if str(length) not in record["seconds"]:
            record["seconds"][str(length)] = measure(length, options, peer)
            print(f"{length} done", flush=True)
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found = {what: rows_of(record, what) for what in (TRAINED if options.compile else WORK)}
    lengths = sorted(map(int, record["seconds"]))
    for what, rows in found.items():
        print("\n" + table(what, lengths, rows))
    if options.plot:
        plot(options.plot, found)


if __name__ == "__main__":
    main()
