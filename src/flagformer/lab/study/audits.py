"""Audits of the variants before training: validity, decoding speed, and size of the decode state.

Each variant is audited once, in its own process, before the first training step. Validity is the result of
`flagformer.audit`: the loss of a model that reads later tokens or other rows of the batch is meaningless.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flagformer
from flagformer.lab.objectives import PAIRS
from flagformer.lab.study.design import Study
from flagformer.lab.study.pool import Pool
from flagformer.lab.study.sizes import text_parts
from flagformer.lab.train.config import Trial
from flagformer.lab.train.files import read_record, write_json
from flagformer.ops.home import home_of

EXAMINED = "examined.json"
_EXAMINED = {"stamps": {}, "failures": [str]}
# the properties of a valid variant, and the audit checks of each
STAMPS: dict[str, tuple[str, ...]] = {
    "causal": ("future_leak", "length"),
    "padding-neutral": ("right_padding", "left_padding", "packing"),
    "cache = full": ("cache",),
    "batch-independent": ("batch",),
    "deterministic": ("determinism",),
    "finite": ("finite",),
}
OF_SOURCE = ("determinism", "right_padding", "left_padding", "packing", "batch")
NEW_TOKENS = 64  # decoded tokens for the speed
STATE_LENGTHS = (64, 128)  # capacities of the two decode states whose sizes are compared
POLL = 0.2  # seconds


def run_audits(
    study: Study, directory: Path, at_once: int, threads: int, preload: Sequence[str],
    examiner: Callable[[Any, Path], object],
) -> None:  # fmt: skip
    """Audit every variant that has not been audited yet, `at_once` in parallel; none with `audit: false`."""
    if not study.audit:
        return
    pool: Pool[str] = Pool(examiner, at_once, threads, preload)
    todo = {folder: trial for folder, trial in _folders(study, directory) if "stamps" not in _read(folder)}
    waiting = list(todo.items())
    try:
        while waiting or pool.running:
            while waiting and pool.has_room:
                folder, trial = waiting.pop(0)
                pool.start(str(folder), trial, folder)
            for ended in pool.ended(POLL):
                if ended.failure is not None:
                    Path(ended.job).mkdir(parents=True, exist_ok=True)
                    write_json(Path(ended.job) / EXAMINED, {"failure": ended.failure.message})
    except KeyboardInterrupt:
        text = f"stopped before the first step; run the same command again to resume in {directory}"
        raise KeyboardInterrupt(text) from None
    finally:
        pool.stop()


def audit_variant(trial: Trial, directory: Path) -> None:
    """Build the model of a trial, audit it, time its decoding, and write the results."""
    import torch

    torch.manual_seed(trial.seed)
    write_json(directory / EXAMINED, audit_results(flagformer.build(trial.model_flags), trial))


def audit_results(model: Any, trial: Trial) -> dict[str, Any]:
    """The contents of examined.json: `stamps`, each "passed", "failed" or "not applicable"; `failures`, the
    messages of failed checks; `decode_tokens_per_second` of one row; `state_bytes_per_token`. The encoder of
    an encoder-decoder is audited too, for padding and packing of the source."""
    from flagformer.audit import audit

    causal = True if trial.trained_by.requires_causal(trial.source) else None
    settings: dict[str, Any] = {"seed": trial.seed, "precision": trial.train.precision}
    reports = [audit(model, causal=causal, **settings)]
    kind = model.flags["model"]
    if kind in PAIRS:
        encoder = model.enc if kind == "routing_encdec" else model.encoder
        reports.append(audit(encoder, checks=OF_SOURCE, **settings))
    found = {
        stamp: _together([r.status for report in reports for r in report if r.check in STAMPS[stamp]])
        for stamp in STAMPS
    }
    speed = decode_speed(model) if trial.trained_by.requires_causal(trial.source) else None
    return {
        "stamps": found,
        "failures": [f"{result.title}: {result.words}" for report in reports for result in report.failures],
        **({} if speed is None else {"decode_tokens_per_second": speed}),
        "state_bytes_per_token": state_bytes(model),
    }


def decode_speed(model: Any) -> float | None:
    """Decoded tokens per second for one row, after a prompt or source of one token and a warm-up; None for a
    model that does not generate tokens."""
    import torch

    model.eval()
    kind = model.flags["model"]
    decoder = text_parts(model)[-1:]
    if not decoder:
        return None
    prompt = torch.zeros(1, 1, dtype=torch.long, device=home_of(model)[0])
    new = max(1, min(NEW_TOKENS, decoder[0].max_seq_len - 1))
    pair = kind in PAIRS
    generate: Any = model.generate if pair else flagformer.AutoregressiveWrapper(decoder[0]).generate
    for _ in range(2):
        began = time.perf_counter()
        generate(*([prompt, prompt] if pair else [prompt]), new, temperature=0.0)
        took = time.perf_counter() - began
    return round(new / took, 1)


def state_bytes(model: Any) -> int | None:
    """Bytes by which a decode state grows with each token; None for a model without decode state."""
    parts = text_parts(model)
    try:
        decoder = parts[-1] if parts else model
        short, long = (decoder.init_state(1, length).size_bytes() for length in STATE_LENGTHS)
    except (
        ValueError,
        NotImplementedError,
        AttributeError,
    ):  # the model has no decode state
        return None
    return round((long - short) / (STATE_LENGTHS[1] - STATE_LENGTHS[0]))


def read_audits(study: Study, directory: Path) -> dict[str, Mapping[str, Any]]:
    """The audit of each variant, as far as it exists."""
    found: dict[str, Mapping[str, Any]] = {}
    for variant, (folder, _) in zip(study.compare, _folders(study, directory)):
        if study.audit:
            found[variant] = _read(folder)
    return found


def _read(folder: Path) -> dict[str, Any]:
    return read_record(folder / EXAMINED, _EXAMINED) if (folder / EXAMINED).exists() else {}


def _folders(study: Study, directory: Path) -> list[tuple[Path, Trial]]:
    """The audit directory of each variant, by content: identical models are audited once."""
    found = []
    for variant in study.compare:
        trial = study.trial(variant, study.seeds[0], study.candidates[0])
        content = json.dumps(
            [
                trial.model_flags,
                study.data.model_dump(mode="json"),
                trial.train.precision,
                *([] if study.objective is None else [study.objective.model_dump(mode="json")]),
            ],
            sort_keys=True,
        )
        found.append((directory / "variants" / hashlib.sha256(content.encode()).hexdigest()[:12], trial))
    return found


def _together(statuses: list[str]) -> str:
    """ "failed" if any status is, else "passed" if any is."""
    return next((status for status in ("failed", "passed") if status in statuses), "not applicable")
