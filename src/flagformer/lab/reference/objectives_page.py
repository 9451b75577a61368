"""docs/objectives.md: the objectives of training, and the kinds of model that each trains."""

from __future__ import annotations

from typing import get_args

from flagformer.lab.objectives import KINDS, Objective
from flagformer.lab.objectives.catalogue import KnownObjective
from flagformer.lab.reference.markdown import code, page, table
from flagformer.lab.reference.setting_tables import name_of, section

INTRODUCTION = """# Objectives

The `objective` of a study or training file determines the batches, the loss and the metric. Generated from
the code by `make docs`; do not edit.

```yaml
name: encoders
base: {model: encoder, dim: 64, depth: 2, heads: 2}
data: {source: stdlib, seq_len: 64}
objective: {name: masked_lm, rate: 0.3}   # or only the name: objective: masked_lm
train: {steps: 400, batch_size: 32}
compare:
  learned: {}
  rotary: {rotary_pos_emb: true}
```

Without `objective`, `model` and the data determine it: images are classified, and vectors are predicted by
regression; decoders predict the next token, encoders masked tokens, classifiers the class of a row,
encoder-decoders the target of a pair, or on text removed spans. A `routing_lm` predicts the next token with
`causal: true`, else masked tokens.

The sizes of the model that follow from the data are left out: the vocabulary with its mask token, start token
or sentinels, the lengths, the number of classes, the width of vectors.

`flagformer generate` continues a text with a decoder, prints the target of a source with an encoder-decoder,
fills each `[MASK]` of a text with an encoder, and prints the probability of each class with a classifier."""
REST = """## Data

- `next_token`, `prefix_lm`, `masked_lm`, `masked_diffusion` and `span_corruption` take every source of token
  ids.
- `sequence_to_sequence` takes pairs: `parallel`, the tasks `copy`, `reverse`, `sort`, `addition`,
  `multiplication`, `grammar` and `infilling`, and text, whose rows are halved.
- `sequence_classification` takes rows with a class: `jsonl`, `csv`, `parquet` and `dataset` with `label`, and
  the tasks `parity`, `list_ops`, `cfg_depth`, `induction` and `long_retrieval`.
- `regression` takes `series` and `sines`, `image_classification` takes `image_folder` and `digits`.

[How to use your data](how-to-data.md) shows the sources of files. In all tasks, a hash of its input
assigns each row to one split: no row of the test split is a training row. `grammar` holds out combinations of
words too: each sentence of its test split has one that no other split has.

## Audits

Before training, each variant is [audited](api/audit.md). Objectives that predict later tokens from earlier
ones require that no output depends on a later token: a bidirectional model is invalid there. The checks of
an encoder-decoder read tokens of the target, by its own forward, so that a target that reaches the encoder or
its memory is found; its encoder is checked for padding and packing of the source. Classifiers of tokens and
images are checked for padding, batch independence, gradients and finite values.

## Your own objective

A subclass of `flagformer.lab.objectives.Objective` with a field `name: str` is named by its import path:
`objective: {name: "mylab.objectives:FocalNextToken", gamma: 2}`. The command needs `--allow mylab`, or
`--import mylab.objectives`. An error in its batches names its file and line.
`examples/own_data_and_objective` has one.

An objective of the library is one file in `src/flagformer/lab/objectives`, a subclass of `Objective`; one
line in `catalogue.py`; and one test."""


def objectives_page() -> str:
    """The text of the page."""
    found: list[type[Objective]] = list(get_args(get_args(KnownObjective)[0]))
    rows = [[code(kind), *("yes" if kind in one.trains else "" for one in found)] for kind in KINDS]
    parts = [INTRODUCTION, "## Models", table(("model", *(code(name_of(one)) for one in found)), rows)]
    parts += [_section(one) for one in found]
    return page(*parts, REST)


def _section(objective: type[Objective]) -> str:
    reasons: dict[str, list[str]] = {}
    for kind, reason in objective.refusals.items():
        reasons.setdefault(reason, []).append(code(kind))
    refused = "\n".join(f"- {', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
    return page(section(objective).rstrip(), "Other models are refused:", refused).rstrip()
