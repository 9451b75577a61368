"""The kernels of flash-linear-attention for `mixer.scan`, on CUDA in half precision.

With `beta` its `gated_delta_rule`, without it its `simple_gla`, linear attention with one decay per head.
They are called by keyword, with the arguments that versions 0.4 to 0.6 document. Products are in the dtype of
the model, the state is in fp32. They have no second derivatives.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from torch import Tensor

from flagformer.mixer.scan import ScanInputs
from flagformer.ops.full_precision import without_casts
from flagformer.ops.traced import traced

PACKAGES = ("fla-core", "flash-linear-attention")  # the first has the operators of the second since 0.4
SUPPORTED = SpecifierSet(">=0.4,<0.7")
DEVICE = "cuda"
DTYPES = (torch.bfloat16, torch.float16)
MAX_DIM_KEY = 256
# Tokens up to which the recurrent kernels are faster. That of the delta rule has no backward.
SHORT = 64


def refusal(device: torch.device, dtype: torch.dtype, dim_key: int) -> str:
    """Why the kernels do not run here; empty if they do.

    Args:
        dtype: of the queries, keys and values, before they are cast to fp32.
        dim_key: K.
    """
    if device.type != DEVICE:
        return f"flash-linear-attention runs on {DEVICE.upper()}, and this model is on {device.type}"
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"flash-linear-attention computes in bfloat16 or float16, and this model in {name}"
    if dim_key > MAX_DIM_KEY:
        return f"flash-linear-attention takes keys of at most {MAX_DIM_KEY} dims, and these have {dim_key}"
    if traced():
        return "flash-linear-attention cannot be traced or transformed"
    return _missing()


@cache
def _missing() -> str:
    """Why the package cannot be used; empty if it can."""
    found = next((text for text in map(_version, PACKAGES) if text), "")
    if not found:
        return "flash-linear-attention is not installed"
    if Version(found) not in SUPPORTED:
        return f"flash-linear-attention {found} is installed, and versions {SUPPORTED} are supported"
    try:
        import_module("fla.ops.gated_delta_rule")
        import_module("fla.ops.simple_gla")
    except ImportError as error:
        return f"flash-linear-attention cannot be imported: {error}"
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def scan(inputs: ScanInputs, state: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same as `mixer.scan.scan`, where `refusal` is empty, with products in `dtype`."""
    repeats = inputs.v.shape[2] // inputs.q.shape[2]
    q, k = (x.to(dtype).repeat_interleave(repeats, dim=2) for x in inputs[:2])
    given = {"q": q, "k": k, "v": inputs.v.to(dtype), "g": inputs.decay.float()}
    if inputs.beta is not None:
        given["beta"] = inputs.beta.to(dtype)
    kernel = _kernel("simple_gla" if inputs.beta is None else "gated_delta_rule", [*given.values(), state])
    with without_casts(state.device):
        if inputs.starts is None:
            out, new = kernel(**given, scale=1.0, initial_state=state, output_final_state=True)
        else:
            out, new = _packed(kernel, given, state, inputs.starts)
    return out.to(state.dtype), new.to(state.dtype)


def _kernel(rule: str, tensors: list[Tensor]) -> Any:
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    form = "chunk" if trains or tensors[0].shape[1] > SHORT else "fused_recurrent"
    return getattr(import_module(f"fla.ops.{rule}"), f"{form}_{rule}")


def _packed(kernel: Any, given: dict[str, Tensor], state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Documents as one row of sequences of different lengths: a row of the batch is one or more of them."""
    rows, length = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero()[:, 0]  # of each document, in the row of all
    continues = (first % length == 0) & ~starts.flatten()[first]
    initial = state[first // length].masked_fill(~continues[:, None, None, None], 0.0)
    out, new = kernel(
        **{name: x.flatten(0, 1)[None] for name, x in given.items()},
        scale=1.0,
        initial_state=initial,
        output_final_state=True,
        cu_seqlens=torch.cat([first, first.new_tensor([rows * length])]),
    )
    last = begins.sum(dim=1).cumsum(dim=0) - 1
    return out[0].unflatten(0, (rows, length)), new[last]
