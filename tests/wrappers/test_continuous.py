"""ContinuousTransformerWrapper: its function, decode states, flags of a decoder, audit, files, mistakes."""

import copy
import logging
import pickle

import pytest
import torch
import x_transformers as peer

import flagformer
from flagformer.flags import SLOTS
from flagformer.lab.reference import choices
from perturbed_models import perturbed

SIZES = {"max_seq_len": 12, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
BASE = {"model": "continuous", "dim_in": 3, "dim_out": 5, **SIZES}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(**flags):
    return perturbed({**BASE, **flags}).eval()


def vectors(batch=2, length=8, width=3):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_inputs_and_outputs_are_projected(causal, norm):
    model, x, seen = build(causal=causal, post_emb_norm=norm), vectors(), {}
    model.attn_layers.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    out, embeddings = model(x), model(x, return_embeddings=True)
    want = x @ model.project_in.weight.T + model.net.token_emb.weight[0] + model.net.pos_emb.table.weight[:8]
    torch.testing.assert_close(seen["x"], model.net.embedding.norm(want), **CLOSE)
    torch.testing.assert_close(out, embeddings @ model.project_out.weight.T + model.project_out.bias, **CLOSE)
    changed = x.clone()
    changed[:, 5:] += 1.0
    assert torch.allclose(model(changed)[:, :5], out[:, :5], atol=1e-5) == causal


def test_without_projections():
    model = build(dim_in=None, dim_out=None, emb_dim=12)
    assert model(vectors(width=12)).shape == (2, 8, 16)
    names = [name for name, _ in model.named_parameters() if name.startswith("project")]
    assert not names


def test_the_bias_of_inputs_starts_at_zero():
    model = flagformer.build(BASE)
    assert not model.net.token_emb.weight.any()
    perturbed(BASE).net.token_emb.weight.data += 1
    model.net.token_emb.weight.data += 1
    model.reset_parameters()
    assert not model.net.token_emb.weight.any()


@pytest.mark.parametrize(
    "flags", [{}, {"rotary_pos_emb": True}, {"num_memory_tokens": 2}, {"mixer": "mamba2"}]
)
@pytest.mark.parametrize("left", [False, True])
def test_decoding_with_a_state_equals_one_forward(flags, left):
    model, x = build(**flags), vectors()
    starts = torch.tensor([0, 2]) if left else None
    want = model(x, seq_start_pos=starts)
    state, parts = model.init_state(2, 8, seq_start_pos=starts), []
    for part in x.split([3, 1, 1, 3], dim=1):
        parts.append(model(part, state=state))
    got = torch.cat(parts, dim=1)
    torch.testing.assert_close(got[0], want[0], **CLOSE)
    torch.testing.assert_close(got[1, 2 * left :], want[1, 2 * left :], **CLOSE)


def test_segments():
    model, x = build(max_mem_len=8, rotary_pos_emb=True), vectors()
    first, mems = model(x[:, :4], return_mems=True)
    second = model(x[:, 4:], mems=mems)
    torch.testing.assert_close(torch.cat([first, second], 1), model(x), **CLOSE)


def test_padding_and_packing():
    model, x = build(), vectors()
    short = model(x[:1, :5])
    mask = torch.arange(8)[None] < 5
    torch.testing.assert_close(model(x[:1], mask=mask)[:, :5], short, **CLOSE)
    packed = model(torch.cat([x[:1, :5], x[1:, :3]], 1), seq_lens=[[5, 3]])
    torch.testing.assert_close(packed, torch.cat([short, model(x[1:, :3])], 1), **CLOSE)


def test_a_context():
    model, context = build(cross_attend=True), vectors(length=4, width=16)
    out = model(vectors(), context=context, context_mask=torch.ones(2, 4, dtype=torch.bool))
    assert (model(vectors(), context=-context) - out).abs().max() > 1e-3


def test_auxiliary_losses():
    model = build(ff_moe=True).train()
    out, outputs = model(vectors(), return_losses=True)
    assert outputs.logits is out
    assert outputs.extra_loss.requires_grad


@pytest.mark.parametrize("flags", [{}, {"causal": False}, {"emb_dim": 12, "post_emb_norm": True}])
def test_every_parameter_is_trained(flags):
    model = build(**flags).train()
    model(vectors()).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


LAYERS = [
    choice for choice in choices()
    if choice.component is not None and SLOTS[choice.component.slot].scope != "model"
]  # fmt: skip


@pytest.mark.parametrize("choice", LAYERS, ids=lambda choice: choice.name)
def test_every_flag_of_a_decoder_works(choice):
    if getattr(choice.component.cls, "reads_token_ids", False):
        with pytest.raises(flagformer.FlagError, match="continuous inputs have no token ids"):
            build(**choice.extra, **choice.flags)
        return
    model = build(**choice.extra, **choice.flags)
    how = {"context": vectors(length=4, width=16)} if model.attn_layers.has_cross else {}
    out = model(vectors(), **how)
    assert out.shape == (2, 8, 5)
    assert out.isfinite().all()
    assert flagformer.build(model.flags).flags == model.flags


@pytest.mark.parametrize(
    "flags", [{"rotary_pos_emb": True}, {"causal": False}, {"dim_in": None, "emb_dim": 12, "dim_out": 1}]
)
def test_the_audit_passes(flags):
    report = flagformer.audit(build(**flags))
    assert report.passed, str(report)
    cached = report["cache"]
    assert cached.passed == flags.get("causal", True)


def test_copies_and_files_preserve_the_model(tmp_path):
    model, x = build(rotary_pos_emb=True, use_rmsnorm=True), vectors()
    want = model(x)
    model.save(tmp_path)
    made = [flagformer.load(tmp_path).eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in made:
        assert torch.equal(other(x), want)
        assert other.flags == model.flags
        assert other.num_params() == model.num_params()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), want, **CLOSE)
    assert "3 to 5 numbers" in model.explain()


@pytest.mark.parametrize(
    ("flags", "flag", "says"),
    [
        ({"dim_in": 0}, "dim_in", "must be at least 1, but is 0"),
        ({"dim_inn": 3}, "dim_inn", "is not a flag"),
        ({"num_tokens": 7}, "num_tokens", "cannot be given, because it is a setting of token ids"),
        ({"embedding_scale": True}, "embedding_scale", "it is a setting of token ids"),
        ({"tie_embedding": True}, "tie_embedding", "use `dim_out`"),
        ({"logits_dim": 3}, "logits_dim", "use `dim_out`"),
    ],
)
def test_mistakes_are_named(flags, flag, says):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.check({**BASE, **flags})
    found = {finding.flag: finding.message for finding in error.value.findings}
    assert says in found[flag]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 8, dtype=torch.long), r"numbers of shape \[B, T, 3\], but is torch.int64 of shape"),
        (vectors(width=4), r"but is torch.float32 of shape \[2, 8, 4\]"),
        (vectors().long(), "but is torch.int64"),
        (vectors()[:, :0], "at least one row of one vector"),
        (vectors(length=13), "max_seq_len"),
        ([[1.0]], "must be a tensor"),
    ],
)
def test_wrong_inputs_are_named(x, says):
    with pytest.raises(ValueError, match=says):
        build()(x)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`return_losses` must be False with `return_mems`"):
        build()(vectors(), return_losses=True, return_mems=True)


def test_the_loss_of_next_tokens_refuses_it():
    with pytest.raises(ValueError, match="must be a model of token ids, but is Continuous"):
        flagformer.AutoregressiveWrapper(build())


@pytest.mark.parametrize("causal", [True, False])
def test_parity_with_the_peer(causal):
    """x-transformers, whose projections have no biases."""
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
    torch.manual_seed(3)
    layers = (peer.Decoder if causal else peer.Encoder)(dim=16, depth=2, heads=2, attn_dim_head=8)
    theirs = peer.ContinuousTransformerWrapper(max_seq_len=12, attn_layers=layers, dim_in=3, dim_out=5).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = build(causal=causal)
    flagformer.interop.load_x_transformers(theirs.attn_layers, ours.attn_layers)
    with torch.no_grad():
        for mine, other in ((ours.project_in, theirs.project_in), (ours.project_out, theirs.project_out)):
            mine.weight.copy_(other.weight)
        ours.net.token_emb.weight.zero_()
        ours.project_out.bias.zero_()
        ours.net.pos_emb.table.weight.copy_(theirs.pos_emb.emb.weight * theirs.pos_emb.scale)
    torch.testing.assert_close(ours(vectors()), theirs(vectors()), **CLOSE)
