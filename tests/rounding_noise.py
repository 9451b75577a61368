"""How much the outputs of a model change under errors as large as rounding."""

import torch


def sensitivity(model, run, change, dtype):
    """The largest of four changes under random errors of each linear, of the size of the rounding of a dtype.

    Args:
        run: gives an output of the model.
        change: output -> its change, a number.
    """
    generator, unit = torch.Generator().manual_seed(0), torch.finfo(dtype).eps / 2

    def noisy(module, inputs, out):
        return out * (1 + unit * (2 * torch.rand(out.shape, generator=generator) - 1))

    hooks = [m.register_forward_hook(noisy) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    try:
        with torch.no_grad():
            return max(change(run()) for _ in range(4))
    finally:
        for hook in hooks:
            hook.remove()
