"""docs/training.md: optimizers, roles of parameters, schedules and losses of training."""

from __future__ import annotations

from typing import get_args

from flagformer.lab.reference.markdown import code, page, table
from flagformer.lab.reference.setting_tables import HEAD, section, settings_rows
from flagformer.lab.train.decays import DECAYS
from flagformer.lab.train.optimizers import Optimizer
from flagformer.lab.train.optimizers.catalogue import KnownOptimizer
from flagformer.lab.train.roles import ROLES
from flagformer.lab.train.settings import TrainConfig

INTRODUCTION = """# Training

The `train` block of a study or training file. Generated from the code by `make docs`; do not edit.

```yaml
train:
  steps: 2000
  batch_size: 32
  optimizer: {name: muon, momentum: 0.95}   # or only the name: optimizer: muon
  lr: 2e-3
  groups: {embedding: {lr: 6e-3, weight_decay: 0}}
  decay: wsd
  ema: 0.999
```

A variant of a study has settings of its own under `train`, and `tune` finds rates:

```yaml
compare:
  adamw: {}
  muon: {train: {optimizer: muon}}
tune: {lr: [1e-3, 2e-3, 4e-3, 8e-3]}
```

Compare optimizers by their own best rates: at one rate for all, the ranking is that of the rate."""
ROLE_TEXT = """## Groups

`groups` sets the rate and the weight decay of the parameters of a role. The role follows from the module of a
parameter, in every model. The rates of all groups have the same warmup and decay."""
DECAY_TEXT = """## Decay of the learning rate

The rate rises linearly over `warmup` steps. Afterwards it is:"""
REST = """`decay: "mylab.rates:polynomial"` is your own function: from the share of the steps after the
warmup, 0 to 1, to the share of `lr` above `lr * lr_end`. The command needs `--import mylab.rates`.

## Averages of the weights

With `ema`, and with `optimizer: schedulefree`, evaluations, validations and the saved model have averages of
the weights. Training does not depend on evaluations: the trained weights return bit by bit.

## Your own optimizer

`optimizer: {name: "mylab.optim:Sophia", rho: 0.05}` is a subclass of `torch.optim.Optimizer`. It receives
parameter groups, each with `weight_decay`, the argument `lr`, and the other keys as arguments.

An optimizer of the library is one file in `src/flagformer/lab/train/optimizers`, a subclass of `Optimizer`;
one line in `catalogue.py`; and one test."""


def training_page() -> str:
    """The text of the page."""
    found: list[type[Optimizer]] = list(get_args(get_args(KnownOptimizer)[0]))
    roles = [(code(name), text) for name, text in ROLES.items()]
    decays = [(code(name), text) for name, text in DECAYS.items()]
    parts = [INTRODUCTION, "## Settings", table(HEAD, settings_rows(TrainConfig))]
    parts += ["## Optimizers", *(section(one).rstrip() for one in found)]
    parts += [ROLE_TEXT, table(("role", "parameters"), roles)]
    return page(*parts, DECAY_TEXT, table(("decay", "rate"), decays), REST)
