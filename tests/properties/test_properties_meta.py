"""Every choice runs on the meta device, where studies count parameters and operations before they train."""

import pytest
import torch
from property_settings import TINY

import flagformer
from flagformer.lab.reference import choices, settings

CHOICES = {choice.name: choice for choice in choices()}


@pytest.mark.parametrize("name", CHOICES)
def test_choice_runs_without_memory(name):
    with torch.device("meta"):
        model = flagformer.build({**settings(CHOICES[name]), **TINY})
        layers, side = model.attn_layers, {}
        if layers.has_cross and not model.num_memory_slots:
            side["context"] = torch.zeros(2, 5, layers.dims.dim_context or layers.dims.dim)
        out = model(torch.zeros(2, 9, dtype=torch.long), **side)
    assert out.device.type == "meta"
    assert out.shape[:2] == (2, 9)
