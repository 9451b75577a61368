"""Adapters and hooks on linears and embeddings have an effect in every kind of model and every call."""

import pytest
import torch
from property_settings import TINY
from property_subject import TIGHT, differ, perturb, same
from test_properties_linears import CHANGES, LAYERS, Adapter

import flagformer
from flagformer import AutoregressiveWrapper, XLAutoregressiveWrapper
from flagformer.ops.home import home_of

DEPTH = {"depth": 1}
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
OTHER = IDS.flip(1)
CONTEXT = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
IMAGES = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
GREEDY = {"temperature": 0}
ROUTING = {"num_tokens": 11, "dim": 16, "heads": 4, "dim_head": 8, "max_seq_len": 16, "window_size": 4}
LOCAL = {"n_local_attn_heads": 1, "local_attn_window_size": 4}
REMEMBERS = {"max_mem_len": 8, "rel_pos_bias": True, "max_seq_len": 4}
VIT = {"image_size": [8, 4], "patch_size": 2, "dim": 16, "depth": 1, "heads": 2}


def halves(flags, **own):
    """`flags` for both halves of a model."""
    both = {f"{half}_{name}": v for half in ("enc", "dec") for name, v in flags.items() if name != "dim"}
    return {"dim": 16, **both, **own}


def weighed(out):
    """A scalar that every element changes."""
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).cos()).sum()


def encoder(model, **side):
    logits = model(IDS, **side)
    return {"loss": weighed(logits), "logits": logits}


def decoder(model, **side):
    loss = AutoregressiveWrapper(model)(IDS, **side)
    new = AutoregressiveWrapper(model).generate(IDS, 4, **GREEDY, **side)
    beams = AutoregressiveWrapper(model).beam_search(IDS, 4, 2, **side)
    return {"loss": loss, "generation": new, "beams": beams}


def pair(model):
    new, beams = model.generate(IDS, OTHER[:, :2], 4, **GREEDY), model.beam_search(IDS, OTHER[:, :2], 4, 2)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    return {"loss": model(IDS, OTHER, mask), "generation": new, "beams": beams}


def images(model):
    out = model(IMAGES.to(home_of(model)[1]))
    return {"loss": weighed(out), "logits": out}


def memformer(model):
    stream = model.stream(2)
    read = torch.cat([stream(part) for part in IDS.split((4, 5), dim=1)], dim=1)
    first = model(IDS)
    found = {"stream": read, "slots": first.mem}
    if model.decoder is None:
        second = model(OTHER, mems=first.mem)
        return {"loss": weighed(second.enc_out) + weighed(second.mem), **found}
    loss = model(OTHER, IDS, mems=first.mem).dec_out
    return {"loss": loss, "generation": stream.generate(OTHER[:, :2], 4, **GREEDY), **found}


def routing(model, **side):
    logits, extra = model(IDS, **side)
    found = {"loss": weighed(logits) + extra, "logits": logits}
    if getattr(model, "net", None) is not None and model.net.can_cache:
        found["loss"] = found["loss"] + model.loss(IDS, **side)
        found["generation"] = model.generate(IDS, 4, **GREEDY, **side)
    return found


def routing_pair(model):
    logits, _ = model(IDS, OTHER)
    new = model.generate(IDS, OTHER[:, :2], 4, **GREEDY)
    return {"loss": model(IDS, OTHER, return_loss=True)[0], "logits": logits, "generation": new}


def layers(model):
    """Routing layers of vectors, without tokens."""
    out, extra = model(CONTEXT.to(home_of(model)[1]))
    return {"loss": weighed(out) + extra, "output": out}


def segments(model):
    """A text longer than a segment: gradients through memories, generation over several segments."""
    learner = XLAutoregressiveWrapper(model)
    loss, mems = learner(IDS, detach_mems=False, return_mems=True)
    more = learner(OTHER, mems, detach_mems=False)
    stream = model.stream(2)
    read = torch.cat([stream(part) for part in IDS.split((3, 2, 4), dim=1)], dim=1)
    return {"loss": loss + more, "stream": read, "generation": learner.generate(IDS, 6, **GREEDY)}


def of(model, **flags):
    return {**TINY, **DEPTH, "model": model, **flags}


KINDS = {"embed_ids": {"kind": IDS % 3}}
KINDS_FLAGS = {"embed_num_tokens": {"kind": 3}}
EMBEDDED = {"use_abs_pos_emb": True, "emb_dim": 12, "num_memory_tokens": 2, "post_emb_norm": True}
# name -> flags, the calls, their inputs
SUBJECTS = {
    "encoder": (of("encoder", rel_pos_bias=True), encoder, {}),
    "encoder, embeddings": (of("encoder", **EMBEDDED, **KINDS_FLAGS, tie_embedding=True), encoder, KINDS),
    "encoder, context": (of("encoder", cross_attend=True, attn_on_attn=True), encoder, {"context": CONTEXT}),
    "encoder, dynamic": (of("encoder", dynamic_pos_bias=True, ff_moe=True), encoder, {}),
    "encoder, routing": (of("encoder", num_clusters=2, window_size=4, **LOCAL), encoder, {}),
    "decoder, embeddings": (of("decoder", **EMBEDDED, **KINDS_FLAGS, tie_embedding=True), encoder, KINDS),
    "decoder, context": (of("decoder", cross_attend=True), decoder, {"context": CONTEXT}),
    "decoder, routed context": (
        of("decoder", cross_attend=True, context_num_clusters=2, context_window_size=2), decoder,
        {"context": CONTEXT},
    ),
    "prefix decoder": (of("prefix_decoder", rotary_pos_emb=True), decoder, {"prefix_attn_len": 3}),
    "xtransformer": (halves({**TINY, **DEPTH}), pair, {}),
    "xtransformer, chunks": (halves({**TINY, **DEPTH, "attn_qk_norm": True}, loss_chunks=3), pair, {}),
    "xtransformer, one embedding": (halves({**TINY, **DEPTH, "emb_dim": 12}, tie_token_emb=True), pair, {}),
    "xtransformer, one table": (
        halves({**TINY, **DEPTH, "l2norm_embed": True}, tie_token_emb=True, dec_tie_embedding=True), pair, {},
    ),
    "xtransformer, reversible": (halves({**TINY, **DEPTH, "reversible": True}), pair, {}),
    "vit": ({"model": "vit", **VIT, "num_classes": 5, "num_register_tokens": 2}, images, {}),
    "vit, embeddings": ({"model": "vit", **VIT, "ff_glu": True, "post_emb_norm": True}, images, {}),
    "memformer": (halves({**TINY, **DEPTH}, num_memory_slots=3, mem_update_attn_heads=2), memformer, {}),
    "memformer, biased": (
        halves({**TINY, **DEPTH}, num_memory_slots=3, mem_update_attn_heads=2, memory_update="bmn"),
        memformer,
        {},
    ),
    "memformer, encoder": (
        {
            "dim": 16, "num_memory_slots": 3, "mem_update_attn_heads": 2, "encoder_only": True,
            **{name: v for name, v in halves({**TINY, **DEPTH}).items() if name.startswith("enc_")},
        }, memformer, {},
    ),
    "routing": ({**ROUTING, **DEPTH, "causal": True, "n_local_attn_heads": 1}, routing, {}),
    "routing, tied": (
        {**ROUTING, **DEPTH, "causal": True, "tie_embedding": True, "emb_dim": 12}, routing, {},
    ),
    "routing, layers of memory": (
        {**ROUTING, "depth": 2, "causal": True, "pkm_layers": 1, "pkm_num_keys": 6, "moe_layers": 2}, routing,
        {},
    ),
    "routing, context": (
        {**ROUTING, **DEPTH, "causal": True, "receives_context": True}, routing, {"context": CONTEXT},
    ),
    "routing, both ways": ({**ROUTING, **DEPTH, "reversible": True}, routing, {}),
    "routing, vectors": (
        {name: v for name, v in ROUTING.items() if name != "num_tokens"} | DEPTH, layers, {},
    ),
    "routing pair": (halves({**ROUTING, **DEPTH}), routing_pair, {}),
    "segments": (of("decoder", **REMEMBERS), segments, {}),
    "segments, shifted": (of("decoder", **REMEMBERS, depth=2, shift_mem_down=1), segments, {}),
    "segments, tied": (of("decoder", **REMEMBERS, tie_embedding=True, attn_one_kv_head=True), segments, {}),
    "slots": (
        of("decoder", rotary_pos_emb=True, max_seq_len=4, cross_attend=True, num_memory_slots=3,
           mem_update_attn_heads=2), segments, {},
    ),
}  # fmt: skip
CLASSES = {
    "xtransformer": flagformer.XTransformer,
    "memformer": flagformer.Memformer,
    "routing": flagformer.RoutingTransformerLM,
    "routing, vectors": flagformer.RoutingTransformer,
    "routing pair": flagformer.RoutingTransformerEncDec,
}


def model_of(name, dtype=torch.float64):
    flags = SUBJECTS[name][0]
    torch.manual_seed(1)
    build = CLASSES.get(name) or CLASSES.get(name.partition(",")[0])
    model = flagformer.build(flags) if build is None else build(**flags)
    return perturb(model.to(dtype).eval())


def answers(name, model):
    """The outputs of a model in every kind of call."""
    _, ask, side = SUBJECTS[name]
    if "context" in side:
        side = {"context": CONTEXT.to(home_of(model)[1])}
    return ask(model, **side)


def found(name, model):
    """Outputs in eval mode; the loss in training mode; gradients of all parameters outside the layers."""
    with torch.no_grad():
        got = answers(name, model)
    model.train().zero_grad()
    torch.manual_seed(3)
    loss = answers(name, model)["loss"]
    loss.backward()
    model.eval()
    inner = {
        id(p) for one in model.modules() if isinstance(one, (*LAYERS, Adapter)) for p in one.parameters()
    }
    grads = {n: p.grad for n, p in model.named_parameters() if id(p) not in inner}
    return {**got, "loss in training": loss.detach(), **grads}


@pytest.mark.parametrize("change", ["adapter", "hook"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_layer_of_every_kind_of_model_is_called(name, change):
    model = model_of(name)
    with torch.no_grad():
        before = answers(name, model)["loss"]
    merged = CHANGES[change](model)
    got, want = found(name, model), found(name, merged)
    differ(got["loss"], before, "the loss of the changed model")
    assert got.keys() == want.keys()
    for what, value in want.items():
        assert (value is None) == (got[what] is None), what
        if value is not None:
            same(got[what].double(), value.double(), what, TIGHT * max(1, value.abs().max().item()))
