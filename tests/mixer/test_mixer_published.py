"""Equal to the classes of transformers 5.24 with the same weights; fp32, in which those compute."""

import pytest
import torch
from mixer_models import pieces, read, whole

from flagformer.flow import Dims
from flagformer.mixer.gated_deltanet import GatedDeltaNet
from flagformer.mixer.mamba2 import Mamba2
from flagformer.mixer.short_convolution import ShortConvolution
from flagformer.mixer.tokens import BlockTokens

transformers = pytest.importorskip("transformers")


def dims(heads, width):
    return Dims(dim=32, heads=heads, dim_head=width, causal=True)


def scaled(theirs):
    """Weights of the size that a trained layer has: those of a new one give outputs of 1e-6."""
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return theirs


def gated_deltanet():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextModel

    config = transformers.Qwen3NextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=12, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, layer_types=["linear_attention"],
    )  # fmt: skip
    net = Qwen3NextModel(config).eval()
    theirs = scaled(net.layers[0].linear_attn)
    torch.nn.init.normal_(theirs.dt_bias)
    torch.nn.init.normal_(theirs.norm.weight)
    ours = GatedDeltaNet(dims(4, 8), dim_value=12, key_groups=2)
    q, k, v, z = theirs.in_proj_qkvz.weight.detach().unflatten(0, (2, -1)).split([8, 8, 24, 24], dim=1)
    beta, step = theirs.in_proj_ba.weight.detach().unflatten(0, (2, -1)).split([2, 2], dim=1)
    ours.load_state_dict({
        "to_qkv.weight": torch.cat([part.flatten(0, 1) for part in (q, k, v)]),
        "to_gate.weight": z.flatten(0, 1), "to_beta.weight": beta.flatten(0, 1),
        "to_step.weight": step.flatten(0, 1), "convolution.weight": theirs.conv1d.weight[:, 0],
        "decay.dt_bias": theirs.dt_bias, "decay.log_rate": theirs.A_log, "norm.weight": theirs.norm.weight,
        "w_out.weight": theirs.out_proj.weight,
    })  # fmt: skip
    return net.config, theirs, ours


def mamba2():
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Model

    config = transformers.Mamba2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_heads=8, head_dim=8, state_size=12,
        n_groups=2, expand=2, chunk_size=16,
    )  # fmt: skip
    net = Mamba2Model(config).eval()
    theirs = scaled(net.layers[0].mixer)
    for one in (theirs.D, theirs.norm.weight, theirs.dt_bias):
        torch.nn.init.normal_(one)
    ours = Mamba2(dims(8, 8), dim_key=12, key_groups=2)
    ours.load_state_dict({
        "to_inner.weight": theirs.in_proj.weight, "convolution.weight": theirs.conv1d.weight[:, 0],
        "convolution.bias": theirs.conv1d.bias, "decay.dt_bias": theirs.dt_bias,
        "decay.log_rate": theirs.A_log, "skip.weight": theirs.D, "norm.weight": theirs.norm.weight,
        "w_out.weight": theirs.out_proj.weight,
    })  # fmt: skip
    return net.config, theirs, ours


def short_convolution():
    from transformers.models.lfm2.modeling_lfm2 import Lfm2Model

    config = transformers.Lfm2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, conv_L_cache=3, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    net = Lfm2Model(config).eval()
    theirs = scaled(net.layers[0].conv)
    ours = ShortConvolution(dims(2, 16), kernel=3)
    ours.load_state_dict({
        "w_in.weight": theirs.in_proj.weight, "convolution.weight": theirs.conv.weight[:, 0],
        "w_out.weight": theirs.out_proj.weight,
    })  # fmt: skip
    return net.config, theirs, ours


PAIRS = pytest.mark.parametrize("pair", [gated_deltanet, mamba2, short_convolution])


def published(config, theirs, x, blocks, valid=None):
    cache, outputs = transformers.DynamicCache(config=config), []
    masks = [None] * len(blocks) if valid is None else valid.float().split(blocks, 1)
    for block, mask in zip(x.split(blocks, 1), masks):
        outputs.append(theirs(block, cache=cache, attention_mask=mask))
    return torch.cat(outputs, 1)


@PAIRS
@torch.no_grad()
def test_equal_to_the_published_class(pair):
    """Whole, token by token, in blocks, and padded on the left."""
    config, theirs, ours = pair()
    x = torch.randn(2, 70, 32)
    want = theirs(x)
    assert want.abs().max() > 0.5
    assert (whole(ours, x)[0] - want).abs().max() < 1e-5
    for blocks in ([70], [1] * 70, [33, 1, 1, 35], pieces(70, [3, 4])):
        for got in (read(ours, x, blocks)[0], published(config, theirs, x, blocks)):
            assert (got - want).abs().max() < 1e-5
    left = torch.arange(70) >= torch.tensor([[0], [50]])
    got = whole(ours, x, BlockTokens(left))[0]
    assert (got - theirs(x, attention_mask=left.float()))[left].abs().max() < 1e-5


@PAIRS
@torch.no_grad()
def test_where_the_published_class_departs_from_the_definition(pair):
    """Right padding and then more tokens: its state of the shorter row has read the padding."""
    config, theirs, ours = pair()
    x = torch.randn(2, 40, 32)
    valid = (torch.arange(40) < torch.tensor([[30], [12]])) | (torch.arange(40) >= 30)
    alone = whole(ours, torch.cat([x[1:, :12], x[1:, 30:]], 1))[0][:, 12:]
    assert (read(ours, x, [30, 10], valid)[0][1:, 30:] - alone).abs().max() < 1e-5
    assert (published(config, theirs, x, [30, 10], valid)[1:, 30:] - alone).abs().max() > 1e-3
