"""Names that x-transformers knows and this library does not, and what to type here in their place."""

from __future__ import annotations

TALKING = "heads mix before and after the softmax together: say `attn_talking_heads`"
FOREIGN = {
    # 1.27
    "attn_onnxable": "every model exports as it is (torch.export); leave it out",
    "attn_dim": "attention has the width of the model: say `dim`",
    "attn_heads": "all attention has the same number of heads: say `heads`",
    "attn_causal": "the whole stack is causal or not: say `causal`, or use Encoder or Decoder",
    "cross_attn_dim_head": "all attention has heads of one width: say `attn_dim_head`",
    "attn_dim_context": "only cross-attention reads a context: say `cross_attn_dim_context`",
    "cross_attn_max_attend_past": "a context has no past: `attn_max_attend_past` is for self-attention",
    "ff_dim": "a feedforward reads the width of the model: say `dim`, and `ff_mult` for its inner width",
    "ff_dim_out": "a feedforward gives the width of the model: say `dim`, and `ff_mult` for its inner width",
    # 2.31
    "attn_pre_talking_heads": TALKING,
    "attn_post_talking_heads": TALKING,
    "attn_pre_scale_post_talking_heads": TALKING,
    "attn_custom_attn_fn": "give what turns scores into weights to the slot: `weights=MyWeights`",
    "ff_custom_activation": "give the function, class or module to the slot: `activation=torch.tanh`",
    "norm_add_unit_offset": "gains are kept as they are; `load_x_transformers` takes it for weights",
    "verbose": "nothing is printed; leave it out",
}


def answer(name: str) -> str:
    """What to do about a foreign name, cross-attention forms included; empty for others."""
    return FOREIGN.get(name) or FOREIGN.get(name.removeprefix("cross_"), "")
