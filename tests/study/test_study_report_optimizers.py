"""The report names the optimizer of each variant and the settings of its training."""

from pathlib import Path

import pytest

from flagformer.lab.study.report.fairness import _optimizer
from flagformer.lab.study.run import prepare

RATE = "peak learning rate 0.01"
COSINE = f"AdamW, {RATE}, cosine decay after 5 steps of warmup"
SENTENCES = {
    "train.optimizer=adamw": COSINE,
    "train.optimizer=schedulefree": f"Schedule-free AdamW, {RATE}, no decay after 5 steps of warmup",
    "train.ema=0.9": f"{COSINE}, `ema` 0.9",
    "train.mup={base: {dim: 8, heads: 1}}": f"{COSINE}, `mup` relative to a base model of dim 8 and heads 1",
    "train.groups={norm: {lr: 0.1}}": f"{COSINE}, `groups` norm {{'lr': 0.1}}",
}


@pytest.mark.parametrize("words", SENTENCES)
def test_a_sentence_for_the_optimizer(tiny: Path, words: str) -> None:
    study = prepare(tiny, [words]).study
    assert _optimizer(study, study.baseline) == SENTENCES[words]
