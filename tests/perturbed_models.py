"""Models with perturbed parameters: none is zero, and no two are equal."""

import torch

import flagformer


def perturbed(flags, seed=0, dtype=torch.float32):
    """The model of `flagformer.build` in training mode, with noise on every parameter."""
    torch.manual_seed(seed)
    model = flagformer.build(flags).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model
