"""The groups of parameters that an optimizer updates, and the optimizer of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from flagformer.lab.train.mup.parameters import Rule
from flagformer.lab.train.optimizers import Group
from flagformer.lab.train.optimizers.muon import Muon
from flagformer.lab.train.roles import ROLES, Named, Role, roles_of
from flagformer.lab.train.settings import TrainConfig


class _Key(NamedTuple):
    """The parameters of one group.

    Attributes:
        role: if it has settings of its own.
        is_matrix: whether weight decay is for them.
        orthogonal: whether Muon updates them.
        rate: factor of their rate under muP.
    """

    role: Role | None
    is_matrix: bool
    orthogonal: bool
    rate: float


def make_optimizer(
    model: nn.Module, config: TrainConfig, rules: Mapping[str, Rule] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters, with weight decay on matrices only (not on norm weights and
    biases), unless `groups` say otherwise.

    Args:
        rules: the rules of muP by the names of parameters; None or empty: without muP.
    """
    groups = parameter_groups(model, config, rules)
    return config.optimizer.make(groups, config.lr, config.betas)


def parameter_groups(
    model: nn.Module, config: TrainConfig, rules: Mapping[str, Rule] | None = None
) -> list[Group]:
    """One group for each combination of role in `config.groups`, weight decay, Muon's matrices and rate.

    `scale` of a group is the ratio of its rate to `lr`. muP multiplies it and divides the weight decay by the
    same factor, so that their product is that of the base model.
    """
    found: dict[_Key, Group] = {}
    for one in roles_of(model):
        if one.parameter.requires_grad:
            key = _key(one, config, rules)
            group = found.get(key)
            if group is None:
                group = found[key] = {"params": [], **_settings(key, config)}
            group["params"].append(one.parameter)
    return [found[key] for key in sorted(found, key=_order)]


def refuse_idle_groups(model: nn.Module, config: TrainConfig) -> None:
    """Raise ValueError for a role in `groups` that no trained parameter has, such as a tied head."""
    if not config.groups:
        return
    roles = {one.role for one in roles_of(model) if one.parameter.requires_grad}
    for role in config.groups:
        if role not in roles:
            raise ValueError(
                f"`train.groups.{role}` has no effect, as no trained parameter of this model has that role; "
                f"it has {', '.join(name for name in ROLES if name in roles)}"
            )


def _key(one: Named, config: TrainConfig, rules: Mapping[str, Rule] | None) -> _Key:
    orthogonal = isinstance(config.optimizer, Muon) and one.role == "matrix" and one.parameter.ndim == 2
    role = one.role if one.role in config.groups else None
    rate = rules[one.name.removeprefix("module.")].rate if rules else 1.0  # DDP's names
    return _Key(role, one.parameter.ndim >= 2, orthogonal, rate)


def _order(key: _Key) -> tuple[bool, bool, str, float]:
    """Matrices first."""
    return not key.orthogonal, not key.is_matrix, key.role or "", -key.rate


def _settings(key: _Key, config: TrainConfig) -> Group:
    settings: Group = {"weight_decay": config.weight_decay if key.is_matrix else 0.0}
    if key.orthogonal:
        settings["orthogonal"] = True
    own = None if key.role is None else config.groups[key.role]
    if own is not None and own.weight_decay is not None:
        settings["weight_decay"] = own.weight_decay
    if own is not None and own.lr is not None:
        settings["scale"] = own.lr / config.lr
    if key.rate != 1:
        settings["scale"] = settings.get("scale", 1.0) * key.rate
        settings["weight_decay"] /= key.rate
    return settings
