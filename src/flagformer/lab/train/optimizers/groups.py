"""The groups of parameters that an optimizer updates, and the optimizer of a model."""

from __future__ import annotations

import torch
from torch import nn

from flagformer.lab.train.optimizers import Group
from flagformer.lab.train.optimizers.muon import Muon
from flagformer.lab.train.roles import Named, Role, roles_of
from flagformer.lab.train.settings import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters, with weight decay on matrices only (not on norm weights and
    biases), unless `groups` say otherwise.
    """
    groups = parameter_groups(model, config)
    return config.optimizer.make(groups, config.lr, config.betas)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[Group]:
    """One group for each combination of role in `config.groups`, weight decay, and Muon's matrices.

    `scale` of a group is the ratio of its rate to `lr`.
    """
    found: dict[tuple[Role | None, bool, bool], Group] = {}
    for one in roles_of(model):
        if one.parameter.requires_grad:
            key = _key(one, config)
            group = found.get(key)
            if group is None:
                group = found[key] = {"params": [], **_settings(key, config)}
            group["params"].append(one.parameter)
    return [found[key] for key in sorted(found, key=_order)]


def _key(one: Named, config: TrainConfig) -> tuple[Role | None, bool, bool]:
    """(role, if it has settings of its own; whether it is a matrix; whether Muon updates it)."""
    orthogonal = isinstance(config.optimizer, Muon) and one.role == "matrix" and one.parameter.ndim == 2
    return one.role if one.role in config.groups else None, one.parameter.ndim >= 2, orthogonal


def _order(key: tuple[Role | None, bool, bool]) -> tuple[bool, bool, str]:
    """Matrices first."""
    role, is_matrix, orthogonal = key
    return not orthogonal, not is_matrix, role or ""


def _settings(key: tuple[Role | None, bool, bool], config: TrainConfig) -> Group:
    role, is_matrix, orthogonal = key
    settings: Group = {"weight_decay": config.weight_decay if is_matrix else 0.0}
    if orthogonal:
        settings["orthogonal"] = True
    own = None if role is None else config.groups[role]
    if own is not None and own.weight_decay is not None:
        settings["weight_decay"] = own.weight_decay
    if own is not None and own.lr is not None:
        settings["scale"] = own.lr / config.lr
    return settings
