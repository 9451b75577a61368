"""The forget gate against the data-dependent bias of x-transformers, for causal models."""

import torch
from x_transformers.x_transformers import DataDependentAlibi

from flagformer.attention.score_bias.forget_gate import ForgetGate
from flagformer.attention.score_bias.total import ScoreBiases
from flagformer.flow import AttentionBias, Causal, Dims, Layout, OutputCollector, SideInputs, TokenBias


def test_it_is_the_data_dependent_bias_of_x_transformers():
    theirs, x = DataDependentAlibi(16, 4), torch.randn(2, 6, 16)
    gate = ForgetGate(Dims(dim=16, heads=4))
    gate.gate.load_state_dict(theirs.to_forget_gates[0].state_dict())
    layout = Layout.arange(6, x.device)
    plain = AttentionBias((Causal(),), None, layout, layout)
    side = SideInputs(plain, None, (), None, None, OutputCollector(), layout)
    bias = TokenBias(plain, ScoreBiases([gate], 4, None)(x, side)).dense().bias
    earlier = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.allclose(bias[..., earlier], theirs(x)[..., earlier], atol=1e-5)
    assert bias[..., ~earlier].isneginf().all()
