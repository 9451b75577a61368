"""Weights copied from routing-transformer 1.6.1 give its logits and its auxiliary loss."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

import flagformer
from flagformer.attention.cores.kmeans import KMeans

FOLDER = Path(__file__).parents[2] / ".venv" / "peers" / "routing-transformer-1.6"
SIZES = {
    "num_tokens": 64,
    "dim": 32,
    "depth": 2,
    "max_seq_len": 32,
    "heads": 4,
    "dim_head": 8,
    "window_size": 8,
}
EXACT = 1e-5  # fp32, two layers


@pytest.fixture(scope="module")
def peer():
    """The package; skipped where it is not installed (`make test` installs it)."""
    folder = os.environ.get("ROUTING_TRANSFORMER_1_6", str(FOLDER))
    if not (Path(folder) / "routing_transformer").is_dir():
        pytest.skip(f"routing-transformer 1.6.1 is not in {folder}: run `make test` once")
    sys.path.insert(0, folder)
    try:
        import routing_transformer
    finally:
        sys.path.remove(folder)
    return routing_transformer


def still(model):
    """Positions taken out: the package turns values too, and chooses clusters by what is turned."""
    for name, buffer in model.named_buffers():
        if name.endswith("sinu_pos_emb.emb"):
            half = buffer.shape[1] // 2
            buffer[:, :half], buffer[:, half:] = 0.0, 1.0
    return model


def stirred(model):
    """Biases of norms and of the head are zero: ours have none."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            none = name.endswith("norm.bias") or name == "out.bias"
            parameter.copy_(0 * parameter if none else parameter + 0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("kmeans.means"):
                buffer.copy_(torch.nn.functional.normalize(torch.randn_like(buffer), dim=-1))
            if name.endswith("initted"):
                buffer.fill_(True)
    return still(model)


def carried(theirs, ours):
    """Every weight of `theirs` in `ours`, a language model of the same sublayers."""
    state = theirs.state_dict()
    found = {
        "token_emb.weight": state["token_emb.weight"],
        "attn_layers.final_norm.gain": state["norm.weight"],
        "head.project.weight": state["out.weight"],
    }
    for index, block in enumerate(theirs.routing_transformer.layers.layers):
        attention, feedforward = block
        here = f"attn_layers.sublayers.{2 * index}"
        own = attention.fn
        parts = [own.to_q.weight, *([] if own.shared_qk else [own.to_k.weight]), own.to_v.weight]
        name = "to_qv" if own.shared_qk else "to_qkv"
        found |= {
            f"{here}.in_norm.gain": attention.norm.weight,
            f"{here}.fn.source.projection.{name}.weight": torch.cat(parts),
            f"{here}.fn.core.kmeans.means": own.global_attn.kmeans.means,
            f"{here}.fn.to_out.weight": own.to_out.weight,
        }
        here = f"attn_layers.sublayers.{2 * index + 1}"
        dense = feedforward.fn.fn
        found |= {f"{here}.in_norm.gain": feedforward.norm.weight}
        found |= {
            f"{here}.fn.{ours_}.{part}": getattr(getattr(dense, theirs_), part)
            for ours_, theirs_ in (("inner", "w1"), ("outer", "w2"))
            for part in ("weight", "bias")
        }
    return found


@pytest.mark.parametrize(
    "flags", [{"causal": True}, {"causal": False}, {"causal": False, "shared_qk": True}], ids=str
)
def test_a_language_model_is_that_of_the_package(peer, flags):
    torch.manual_seed(0)
    theirs = peer.RoutingTransformerLM(**SIZES, **flags, _register_kmeans_update=False)
    stirred(theirs).train()
    causal = flags["causal"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ours = flagformer.build(
            {
                "model": "decoder" if causal else "encoder", "num_tokens": 64, "dim": 32, "depth": 2,
                "max_seq_len": 32, "heads": 4, "attn_dim_head": 8, "window_size": 8, "num_clusters": 4,
                "use_abs_pos_emb": False, "shared_qk": causal or flags.get("shared_qk", False),
                "routing_selection": "leaky" if causal else "topk",
            }
        ).train()  # fmt: skip
    found = carried(theirs, ours)
    missing = ours.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith(("sums", "counts")) for name in missing.missing_keys)
    # no token twice: which of two equal ones a centroid picks is torch's choice in the package
    ids = torch.stack([torch.randperm(64)[:32] for _ in range(2)])
    want, loss = theirs(ids)
    got, outputs = ours(ids, return_losses=True)
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT)
    torch.testing.assert_close(outputs.extra_loss, loss.squeeze(), rtol=0, atol=EXACT)
    assert any(isinstance(module, KMeans) for module in ours.modules())
