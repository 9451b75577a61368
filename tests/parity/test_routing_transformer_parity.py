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
    """The package; skipped if it is not installed (`make test` installs it)."""
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
    """Removes positions: the package rotates values too, and clusters rotated vectors."""
    for name, buffer in model.named_buffers():
        if name.endswith("sinu_pos_emb.emb"):
            half = buffer.shape[1] // 2
            buffer[:, :half], buffer[:, half:] = 0.0, 1.0
    return model


def perturbed(model):
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
    """Load every weight of `theirs` into `ours`, a language model of the same sublayers."""
    state = theirs.state_dict()
    found = {
        "token_emb.weight": state["token_emb.weight"],
        "attn_layers.final_norm.weight": state["norm.weight"],
    }
    if "out.weight" in state:
        found["head.project.weight"] = state["out.weight"]
    for index, block in enumerate(theirs.routing_transformer.layers.layers):
        attention, feedforward = block
        here = f"attn_layers.sublayers.{2 * index}"
        own = attention.fn
        found |= {
            f"{here}.in_norm.weight": attention.norm.weight,
            f"{here}.fn.core.kmeans.means": own.global_attn.kmeans.means,
            f"{here}.fn.to_out.weight": own.to_out.weight,
        } | {f"{here}.fn.source.projection.{name}.weight": part for name, part in projected(own).items()}
        if own.global_attn.num_mem_kv:
            found |= {f"{here}.fn.core.memory.k": own.global_attn.mem_key}
            found |= {f"{here}.fn.core.memory.v": own.global_attn.mem_value}
        here = f"attn_layers.sublayers.{2 * index + 1}"
        dense = feedforward.fn.fn
        found |= {f"{here}.in_norm.weight": feedforward.norm.weight}
        found |= {
            f"{here}.fn.{ours_}.{part}": getattr(getattr(dense, theirs_), part)
            for ours_, theirs_ in (("w_in", "w1"), ("w_out", "w2"))
            for part in ("weight", "bias")
        }
    missing = ours.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith(("sums", "counts")) for name in missing.missing_keys)


def projected(attention):
    """name -> weights of queries, keys and values, packed as in ours."""
    q, v = attention.to_q.weight, attention.to_v.weight
    if attention.shared_qk:
        return {"to_qv": torch.cat([q, v])}
    if attention.receives_context:
        return {"to_q": q, "to_kv": torch.cat([attention.to_k.weight, v])}
    return {"to_qkv": torch.cat([q, attention.to_k.weight, v])}


OURS = {
    "num_tokens": 64, "dim": 32, "depth": 2, "max_seq_len": 32, "heads": 4, "attn_dim_head": 8,
    "window_size": 8, "num_clusters": 4, "use_abs_pos_emb": False,
}  # fmt: skip


def built(**flags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return flagformer.build({**OURS, **flags}).train()


def rows(length=32):
    """No repeated token: the package's top-k breaks ties by torch's order."""
    return torch.stack([torch.randperm(64)[:length] for _ in range(2)])


@pytest.mark.parametrize(
    "flags",
    [
        {"causal": True},
        {"causal": False},
        {"causal": False, "shared_qk": True},
        {"causal": True, "num_mem_kv": 2},
        {"causal": True, "shared_qk": False, "num_mem_kv": 1},
        {"causal": False, "num_mem_kv": 3},
    ],
    ids=str,
)
def test_a_language_model_equals_that_of_the_package(peer, flags):
    torch.manual_seed(0)
    theirs = peer.RoutingTransformerLM(**SIZES, **flags, _register_kmeans_update=False)
    perturbed(theirs).train()
    causal = flags["causal"]
    ours = built(
        model="decoder" if causal else "encoder",
        shared_qk=flags.get("shared_qk", causal),
        routing_selection="leaky" if causal else "topk",
        cluster_num_mem_kv=flags.get("num_mem_kv", 0),
    )
    carried(theirs, ours)
    ids = rows()
    want, loss = theirs(ids)
    got, outputs = ours(ids, return_losses=True)
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT)
    torch.testing.assert_close(outputs.extra_loss, loss.squeeze(), rtol=0, atol=EXACT)
    assert any(isinstance(module, KMeans) for module in ours.modules())


@pytest.mark.parametrize("memories", [0, 2])
def test_an_encoder_decoder_equals_that_of_the_package(peer, memories):
    """Routed cross-attention over a source longer than the target; logits and both losses."""
    torch.manual_seed(0)
    halves = {
        f"{half}_{name}": value for half in ("enc", "dec") for name, value in SIZES.items() if name != "dim"
    }
    theirs = peer.RoutingTransformerEncDec(
        dim=32, **halves, enc_num_mem_kv=memories, dec_num_mem_kv=memories
    ).train()
    source, target = theirs.enc, theirs.dec.net.net  # inside its padder, which pads for local heads only
    perturbed(source), perturbed(target)
    selected = {"cluster_num_mem_kv": memories}
    encoder = built(model="encoder", routing_selection="topk", return_only_embed=True, **selected)
    decoder = built(
        model="decoder", routing_selection="leaky", context_selection="leaky", shared_qk=True,
        custom_layers=("a", "f", "c", "f") * 2, depth=None, context_num_clusters=4, context_window_size=8,
        **selected,
    )  # fmt: skip
    carried(source, encoder)
    carried(target, decoder)
    seq_in, seq_out = rows(), rows(24)
    context, of_source = source(seq_in)
    want, of_target = target(seq_out, context=context)
    encoded, outputs = encoder(seq_in, return_losses=True)
    got, found = decoder(seq_out, context=encoded, return_losses=True)
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT)
    torch.testing.assert_close(outputs.extra_loss, of_source.squeeze(), rtol=0, atol=EXACT)
    torch.testing.assert_close(found.extra_loss, of_target.squeeze(), rtol=0, atol=EXACT)
