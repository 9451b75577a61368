#!/usr/bin/env bash
# torch 2.13.0, torch.func.functional_call: where one submodule is registered under two names, the module keeps the
# given tensors after the call.
# Expected: the call uses the given tensors and leaves the module as it was, as the documentation says and as it does
# where two submodules share one parameter.
# Seen: with the default tie_weights=True the value given for one name is swapped in under every name. Both names reach
# the same attribute, the second swap notes the first one's tensor as the original, and the originals are put back in
# the order of the swaps, so that the last one written is the given tensor. The parameter is lost without an error.
# Output seen (torch 2.13.0, CPU): shared parameter: restored; shared submodule: not restored, a Tensor of 2s.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.func import functional_call


class Twice(nn.Module):
    def __init__(self, share_module: bool) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.second = self.first if share_module else nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


print("torch", torch.__version__)
restored = {}
for share_module in (False, True):
    model = Twice(share_module)
    before = model.first.weight
    out = functional_call(model, {"first.weight": torch.full((2, 2), 2.0)}, torch.ones(1, 2))
    assert out.tolist() == [[16.0, 16.0]], "the call itself is wrong"
    after = model.first.weight
    restored[share_module] = after is before
    print("shared submodule:" if share_module else "shared parameter:", type(after).__name__, after.tolist())
assert restored[False], "a shared parameter is not restored"
assert not restored[True], "a shared submodule is restored now"
PYTHON
