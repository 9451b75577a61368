"""Conditions in every wrapper: passed to the parts that read one, refused where none does."""

import pytest
import torch
from torch import nn

import flagformer

C = 6
SMALL = {"depth": 1, "heads": 2, "attn_dim_head": 8}
TEXT = {"num_tokens": 11, "max_seq_len": 8, **SMALL}
READS = {"adaptive_layernorm": C, "adaptive_gate": C}


def ids(batch=2, length=6, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def conditions(*shape):
    return torch.randn(*shape, C, generator=torch.Generator().manual_seed(1))


def perturbed(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def halves(encoder=None, decoder=None):
    given = {"enc_" + name: value for name, value in (TEXT | (encoder or {})).items()}
    return given | {"dec_" + name: value for name, value in (TEXT | (decoder or {})).items()}


def classifier(reads):
    model = flagformer.SequenceClassifier(dim=16, num_classes=3, pooling="class", **TEXT, **reads)
    return model, lambda **how: model(ids(), **how)


def vit(reads):
    layers = flagformer.Encoder(dim=16, **SMALL, **reads)
    model = flagformer.ViTransformerWrapper(
        image_size=8, patch_size=4, attn_layers=layers, num_classes=3, num_register_tokens=2
    )
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return model, lambda **how: model(images, **how)


def continuous(reads):
    own = {name: value for name, value in TEXT.items() if name != "num_tokens"}
    model = flagformer.ContinuousTransformerWrapper(dim=16, dim_in=3, dim_out=2, **own, **reads)
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    return model, lambda **how: model(x, **how)


def memformer(reads):
    sizes = {"dim": 16, "num_memory_slots": 2, "mem_update_attn_heads": 2}
    model = flagformer.Memformer(**sizes, **halves(decoder=reads))
    return model, lambda **how: model(ids(), ids(), **how).dec_out


def encoder_only(reads):
    sizes = {"dim": 16, "num_memory_slots": 2, "mem_update_attn_heads": 2, "encoder_only": True}
    given = {"enc_" + name: value for name, value in (TEXT | reads).items()}
    model = flagformer.Memformer(**sizes, **given)
    return model, lambda **how: model(ids(), **how).mem


def routing(reads):
    model = flagformer.RoutingTransformer(dim=16, max_seq_len=8, window_size=4, depth=1, heads=2, **reads)
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    return model, lambda **how: model(x, **how)[0]


ROUTING = {"num_tokens": 11, "max_seq_len": 8, "window_size": 4, "depth": 1, "heads": 2}


def routing_lm(reads):
    model = flagformer.RoutingTransformerLM(dim=16, causal=True, **ROUTING, **reads)
    return model, lambda **how: model(ids(), **how)[0]


def routing_pair(reads):
    given = {half + name: value for half in ("enc_", "dec_") for name, value in ROUTING.items()}
    given |= {"enc_" + name: value for name, value in reads.items()}
    model = flagformer.RoutingTransformerEncDec(dim=16, **given)
    return model, lambda **how: model(ids(), ids(), return_loss=True, **how)[0]


WRAPPERS = [
    classifier, vit, continuous, memformer, encoder_only, routing, routing_lm, routing_pair,
]  # fmt: skip


@pytest.mark.parametrize("make", WRAPPERS)
def test_it_changes_the_result_of_its_row_alone(make):
    torch.manual_seed(0)
    model, call = make(READS)
    perturbed(model)
    condition = conditions(2)
    plain, found = call(), call(condition=condition)
    assert not torch.allclose(plain, found, atol=1e-4)
    assert torch.allclose(plain, call(condition=torch.zeros(2, C)), atol=1e-5)
    if found.dim():
        other = condition.clone()
        other[1] += 1
        changed = call(condition=other)
        assert torch.allclose(changed[0], found[0], atol=1e-5)
        assert not torch.allclose(changed[1], found[1], atol=1e-4)
    with pytest.raises(ValueError, match="`condition` must"):
        call(condition=torch.zeros(2, C + 1))


@pytest.mark.parametrize("make", WRAPPERS)
def test_it_is_refused_where_nothing_reads_it(make):
    _, call = make({})
    with pytest.raises(ValueError, match="`condition` was passed, but no component reads it"):
        call(condition=conditions(2))


@pytest.mark.parametrize("make", [memformer, routing_lm, routing_pair])
def test_generation(make):
    model = perturbed(make(READS)[0])
    start, how = ids(2, 1), {"temperature": 0.0}
    given = (start,) if make == routing_lm else (ids(), start)
    new = model.generate(*given, 4, condition=conditions(2), **how)
    assert torch.equal(new, model.generate(*given, 4, condition=conditions(2), cache_kv=False, **how))
    row = [one[:1] for one in given]
    assert torch.equal(new[:1], model.generate(*row, 4, condition=conditions(2)[:1], **how))


@pytest.mark.parametrize("reads", ["enc_", "dec_"])
def test_segments_of_a_source(reads):
    """Streams and replayed gradients equal forwards segment by segment."""
    given = halves(**{"encoder" if reads == "enc_" else "decoder": READS})
    torch.manual_seed(0)
    model = flagformer.Memformer(dim=16, num_memory_slots=2, mem_update_attn_heads=2, **given)
    perturbed(model)
    src, tgt, condition = ids(2, 12), ids(2, 4, seed=1), conditions(2)
    first = model(src[:, :8], condition=condition)
    second = model(src[:, 8:], tgt, first.mem, condition=condition)
    stream = model.stream(2, condition=condition)
    stream(src[:, :5])
    assert torch.allclose(stream(src[:, 5:])[:, 3:], second.enc_out, atol=1e-5)
    how = {"temperature": 0.0}
    wanted = model.generate(src[:, 8:], ids(2, 1), 3, mems=first.mem, condition=condition, **how)
    assert torch.equal(stream.generate(ids(2, 1), 3, **how), wanted)
    model.zero_grad()
    second.dec_out.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    losses = flagformer.memory_replay_backprop(model, src, tgt, condition=condition)
    assert torch.allclose(losses[-1], second.dec_out)
    for one, parameter in zip(grads, model.parameters()):
        assert one is None or torch.allclose(one, parameter.grad, atol=1e-5)
    with pytest.raises(ValueError, match=r"must have shape \[B, C\]"):
        model.stream(2, condition=conditions(2, 3))


def test_vectors_in_blocks_with_a_condition_of_each():
    model, _ = continuous(READS)
    perturbed(model)
    x, condition = torch.randn(2, 6, 3), conditions(2, 6)
    whole, state = model(x, condition=condition), model.init_state(2, 6)
    found = [model(x[:, i : i + 2], condition=condition[:, i : i + 2], state=state) for i in (0, 2, 4)]
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-5)
    report = flagformer.audit(model)
    assert report.passed, str(report)


def test_states_of_wrappers_are_saved(tmp_path):
    """Continued from a file, in every wrapper with a decode state; those of other weights are refused."""
    pair = flagformer.XTransformer(dim=16, **halves()).eval()
    language = routing_lm({})[0].eval()
    vectors, x = continuous({})[0].eval(), torch.randn(2, 6, 3)
    context = pair.encode(ids())

    def decode(state, x):
        return pair.decoder.net(x, context=None if state.length else context, state=state)

    for model, call, tokens in (
        (pair, decode, ids()),
        (language, lambda state, x: language(x, state=state)[0], ids()),
        (vectors, lambda state, x: vectors(x, state=state), x),
    ):
        state = model.init_state(2, 6)
        call(state, tokens[:, :4])
        model.save_state(state, tmp_path / "state")
        again = model.load_state(tmp_path / "state")
        assert torch.equal(call(again, tokens[:, 4:]), call(state, tokens[:, 4:]))
        nn.init.normal_(next(iter(model._of_states.parameters())))
        with pytest.raises(ValueError, match="saved by one with other weights"):
            model.load_state(tmp_path / "state")
