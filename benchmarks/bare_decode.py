"""The hand-written decode loop of `bare.Bare`: a preallocated cache, each step reads its valid part only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bare import Bare


@torch.inference_mode()
def generate(model: Bare, prompt: Tensor, count: int) -> Tensor:
    """The `count` most likely tokens after `prompt` [B, T], one by one: [B, count]."""
    batch, time = prompt.shape
    total, size = time + count, model.size
    shape = (size.depth, 2, batch, size.heads, total, size.head_dim)
    cache = torch.empty(shape)
    layers = [(cache[i, 0], cache[i, 1]) for i in range(size.depth)]
    out = torch.empty(batch, count, dtype=torch.long)
    row = model.bias_row(total)
    token = _prefill(model, prompt, layers)
    out[:, :1] = token
    for position in range(time, total - 1):
        token = _step(model, token, position, layers, row)
        out[:, position - time + 1 : position - time + 2] = token
    return out


def _prefill(model: Bare, prompt: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    time = prompt.shape[1]
    x, rotation, bias = model.embedded(prompt), model.rotation_of(0, time), model.bias(time)
    for block, (keys, values) in zip(model.blocks, layers, strict=True):
        q, k, v = block.heads_of(block.norm(x, block.attn_norm), rotation)
        keys[:, :, :time], values[:, :, :time] = k, v
        x = block.finish(x, F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None))
    return model.logits(x[:, -1:]).argmax(-1)


def _step(
    model: Bare, token: Tensor, position: int, layers: list[tuple[Tensor, Tensor]], row: Tensor | None
) -> Tensor:
    end = position + 1
    x, rotation = model.embedded(token, position), model.rotation_of(position, end)
    bias = None if row is None else row[..., row.shape[-1] - end :]
    for block, (keys, values) in zip(model.blocks, layers, strict=True):
        q, k, v = block.heads_of(block.norm(x, block.attn_norm), rotation)
        keys[:, :, position:end], values[:, :, position:end] = k, v
        attended = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], bias)
        x = block.finish(x, attended)
    return model.logits(x).argmax(-1)
