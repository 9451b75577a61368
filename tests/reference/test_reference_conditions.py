"""Conditions of rows and tokens: the formula of adaptive norms, and what a norm with `side` receives."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer import FlagError
from flagformer.branch import Branch
from flagformer.norm import Norm

C = 6
FLAGS = {"num_tokens": 11, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
NORMS = ["adaptive_layernorm", "adaptive_rmsnorm"]


def build(**flags):
    norm = {} if set(flags) & {"norm", "use_rmsnorm", *NORMS} else {"adaptive_layernorm": C}
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, **norm, **flags}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def ids(batch=2, length=6, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def conditions(*shape):
    return torch.randn(*shape, C, generator=torch.Generator().manual_seed(1))


def close(found, wanted):
    return torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("eps", [None, 0.3])
@pytest.mark.parametrize("form", ["row", "token", "none"])
def test_formula(name, eps, form):
    model = build(**{name: C}, **({} if eps is None else {"norm_eps": eps})).double()
    norm = model.attn_layers.sublayers[1].in_norm
    seen = {}
    norm.register_forward_hook(lambda module, inputs, out: seen.update(x=inputs[0], out=out))
    given = {"row": conditions(2), "token": conditions(2, 6), "none": None}[form]
    model(ids(), condition=None if given is None else given.double())
    weight, bias = norm.to_scale_shift.weight, norm.to_scale_shift.bias
    for row in range(2):
        for token in range(6):
            x = seen["x"][row, token]
            c = torch.zeros(C) if given is None else given[row] if form == "row" else given[row, token]
            c = c.double()
            both = weight @ (c / (1 + (-c).exp())) + bias
            if name == "adaptive_layernorm":
                centred = x - x.mean()
                normed = centred / (centred.square().mean() + (1e-5 if eps is None else eps)).sqrt()
            else:
                normed = x / (x.square().mean() + (0.0 if eps is None else eps)).sqrt()
            wanted = normed * (1 + both[:16]) + both[16:]
            assert torch.allclose(seen["out"][row, token], wanted, atol=1e-10)


@pytest.mark.parametrize("name", NORMS)
def test_it_starts_as_a_norm_without_weight(name):
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, name: C}).eval()
    assert torch.equal(model(ids(), condition=conditions(2)), model(ids()))


@pytest.mark.parametrize("form", ["row", "token", "none"])
def test_formula_of_gates(form):
    """adaLN-Zero: each branch is multiplied by a function of the condition, after its norm and its scale."""
    model = build(adaptive_gate=C, sandwich_norm=True, residual_scale=0.5).double()
    branch, seen = model.attn_layers.sublayers[1].branch, {}
    branch.register_forward_hook(lambda module, inputs, out: seen.update(x=inputs[0], out=out))
    given = {"row": conditions(2), "token": conditions(2, 6), "none": None}[form]
    model(ids(), condition=None if given is None else given.double())
    gate = branch[1].to_gate
    for row in range(2):
        for token in range(6):
            c = torch.zeros(C) if given is None else given[row] if form == "row" else given[row, token]
            c = c.double()
            wanted = 0.5 * seen["x"][row, token] * (gate.weight @ (c / (1 + (-c).exp())) + gate.bias)
            assert torch.allclose(seen["out"][row, token], wanted, atol=1e-10)


def test_gates_start_closed_and_learn():
    torch.manual_seed(0)
    model = flagformer.build({**FLAGS, "adaptive_layernorm": C, "adaptive_gate": C})
    seen = []
    model.attn_layers.final_norm.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    model(ids(), condition=conditions(2)).square().sum().backward()
    assert torch.equal(seen[0], model.token_emb(ids()) + model.pos_emb(torch.arange(6)[None]))
    gates = [sublayer.branch.to_gate for sublayer in model.attn_layers.sublayers]
    assert all(gate.weight.grad.abs().sum() > 0 for gate in gates)
    assert flagformer.build({**FLAGS, "adaptive_gate": (C, None, 0, C)}).attn_layers.condition_dim == C
    with pytest.raises(FlagError, match="`condition_dim` must be one width, but components read"):
        flagformer.build({**FLAGS, "adaptive_layernorm": C, "adaptive_gate": C + 1})


class Signed(Branch):
    """The output with the sign of the first number of the condition: a branch that reads `side`."""

    reads_side = True
    condition_dim = C

    def __init__(self, dims):
        super().__init__()

    def forward(self, out, side):
        return out * side.condition[..., :1].sign()


def test_a_branch_of_your_own_reads_the_condition():
    model = build(branch=[Signed], use_rmsnorm=True)
    ones = torch.ones(2, C)
    plain = build(use_rmsnorm=True)
    plain.load_state_dict(model.state_dict())
    assert close(model(ids(), condition=ones), plain(ids()))
    assert not close(model(ids(), condition=-ones), plain(ids()))


MODELS = {
    "plain": {},
    "gates": {"adaptive_gate": C},
    "gates of RMSNorm": {"adaptive_gate": C, "use_rmsnorm": True, "use_layerscale": True},
    "gates, parallel": {"adaptive_gate": C, "parallel_block": True},
    "gates, reversible": {"adaptive_gate": C, "reversible": True},
    "post-norm": {"pre_norm": False},
    "sandwich": {"sandwich_norm": True},
    "shifted tokens": {"shift_tokens": 1},
    "memory tokens": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
    "reversible": {"reversible": True},
    "checkpointed": {"checkpoint": "sublayer"},
    "dual residual": {"resi_dual": True},
    "mixer": {"mixer": "gated_deltanet"},
    "rotary": {"rotary_pos_emb": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_in_blocks_with_padding_and_in_a_batch(name):
    """Rows of 6 tokens in one call, in cached blocks, left-padded, right-padded, and alone."""
    model = build(**MODELS[name])
    x, rows, tokens = ids(), conditions(2), conditions(2, 6)
    for condition in (rows, tokens):
        whole = model(x, condition=condition)
        state = model.init_state(2, 6)
        parts = []
        for start, end in ((0, 3), (3, 4), (4, 6)):
            own = condition if condition.dim() == 2 else condition[:, start:end]
            parts.append(model(x[:, start:end], state=state, condition=own))
        assert close(torch.cat(parts, 1), whole)
        assert close(model(x[:1], condition=condition[:1]), whole[:1])
        assert not close(model(x, condition=condition + 1), whole)
        pad = torch.zeros(2, 3, dtype=torch.long)
        wide = condition if condition.dim() == 2 else torch.cat([conditions(2, 3) * 9, condition], 1)
        left = model(torch.cat([pad, x], 1), seq_start_pos=torch.tensor([3, 3]), condition=wide)
        assert close(left[:, 3:], whole)
        wide = condition if condition.dim() == 2 else torch.cat([condition, conditions(2, 3) * 9], 1)
        mask = torch.arange(9).expand(2, -1) < 6
        assert close(model(torch.cat([x, pad], 1), mask=mask, condition=wide)[:, :6], whole)
    changed = tokens.clone()
    changed[:, 4] += 1
    assert close(model(x, condition=changed)[:, :4], model(x, condition=tokens)[:, :4])


def test_packed_rows():
    model = build()
    first, second, condition = ids(1, 4), ids(1, 3, seed=1), conditions(1, 7)
    packed = model(torch.cat([first, second], 1), seq_lens=[[4, 3]], condition=condition)
    assert close(packed[:, :4], model(first, condition=condition[:, :4]))
    assert close(packed[:, 4:], model(second, condition=condition[:, 4:]))


def test_prepended_embeddings_and_memory_tokens():
    """A condition of rows is that of all entries; one of tokens is zero for the others."""
    model, front = build(num_memory_tokens=2), torch.randn(2, 3, 16)
    seen = []
    model.attn_layers.register_forward_pre_hook(lambda module, inputs, kw: seen.append(kw), with_kwargs=True)
    model(ids(), prepend_embeds=front, condition=conditions(2, 6))
    inputs = seen[0]["inputs"]
    assert inputs.condition.shape == (2, 11, C)
    assert not inputs.condition[:, :5].any()
    assert torch.equal(inputs.condition[:, 5:], conditions(2, 6))
    assert inputs.token_ids.tolist() == [[-1] * 5 + row for row in ids().tolist()]
    model(ids(), prepend_embeds=front, condition=conditions(2))
    assert torch.equal(seen[1]["inputs"].condition, conditions(2)[:, None])


@pytest.mark.parametrize(
    "flags",
    [
        {"reversible": True, "adaptive_gate": C},
        {"checkpoint": "sublayer", "adaptive_gate": C},
        {"checkpoint": "selective"},
    ],
)
def test_recomputation_sees_the_same_condition(flags):
    """Gradients of parameters and of the condition equal those of a stored forward."""
    found = []
    for more in (flags, {name: value for name, value in flags.items() if name != "checkpoint"}):
        model = build(**more).train()
        condition = conditions(2, 6).requires_grad_()
        options = {"return_intermediates": True} if "reversible" in flags and found else {}
        out = model(ids(), condition=condition, **options)  # requested tensors are stored
        (out[0] if options else out).square().mean().backward()
        found.append([condition.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(close(one, other) for one, other in zip(*found))


def test_generation_and_beams():
    """Of rows, and of tokens, beyond whose end the last condition holds; the same without a cache."""
    model = flagformer.AutoregressiveWrapper(build(rotary_pos_emb=True))
    prompts = [[1, 2, 3, 4], [5, 6]]
    for condition in (conditions(2), conditions(2, 5)):
        for call in (model.generate, lambda *one, **how: model.beam_search(*one, 3, **how)):
            how = {"temperature": 0.0} if call == model.generate else {}
            new = call(prompts, 4, condition=condition, **how)
            assert torch.equal(new, call(prompts, 4, condition=condition, cache_kv=False, **how))
            for row in range(2):
                alone = call(prompts[row], 4, condition=condition[row], **how)
                assert torch.equal(alone, new[row])
    loss = model(ids(), condition=conditions(2, 6))
    assert not torch.isclose(loss, model(ids(), condition=-conditions(2, 6)))


def test_segments_and_streams():
    model = build(rotary_pos_emb=True, max_mem_len=8, max_seq_len=4)
    x, condition = ids(2, 8), conditions(2)
    first, mems = model(x[:, :4], return_mems=True, condition=condition)
    second = model(x[:, 4:], mems=mems, condition=condition)
    stream = model.stream(2, condition=condition)
    found = torch.cat([stream(x[:, :3]), stream(x[:, 3:])], 1)
    assert close(found, torch.cat([first, second], 1))
    wrapper = flagformer.XLAutoregressiveWrapper(model)
    assert not torch.isclose(wrapper(x, condition=condition), wrapper(x))
    assert wrapper.generate(x, 3, condition=condition).shape == (2, 3)
    with pytest.raises(ValueError, match=r"must have shape \[2, 6\] with `mems`"):
        model(x[:, 4:], mems=mems, condition=conditions(2, 4))
    slots = build(cross_attend=True, num_memory_slots=2, mem_update_attn_heads=2, max_seq_len=4).train()
    losses, _ = flagformer.train_segments(slots, x, condition=condition)
    others, _ = flagformer.train_segments(slots, x)
    assert not torch.allclose(losses, others)


def test_encoder_decoders_pass_it_to_the_halves_that_read_it():
    sizes = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2}
    halves = {half + name: value for half in ("enc_", "dec_") for name, value in sizes.items()}
    for half in ("enc_", "dec_"):
        own = {f"{half}adaptive_rmsnorm": C}
        model = flagformer.XTransformer(dim=16, **halves, **own).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        assert not torch.isclose(model(ids(), ids(), condition=conditions(2)), model(ids(), ids()))
        new = model.generate(ids(), ids(2, 1), 3, condition=conditions(2), temperature=0.0)
        assert new.shape == (2, 3)
    plain = flagformer.XTransformer(dim=16, **halves)
    with pytest.raises(ValueError, match="no component reads it"):
        plain(ids(), ids(), condition=conditions(2))
    with pytest.raises(ValueError, match=r"must have shape \[B, C\]"):
        model(ids(), ids(), condition=conditions(2, 6))


def test_mistakes():
    model = build()
    for wrong in (
        conditions(1),
        torch.randn(2, 5),
        torch.randn(2, 5, C),
        torch.ones(2, C, dtype=torch.long),
        3,
    ):
        with pytest.raises(ValueError, match="`condition` must be"):
            model(ids(), condition=wrong)
    state = model.init_state(2, 6)
    model(ids()[:, :2], state=state)
    with pytest.raises(ValueError, match="holds tokens without one, and this call is with"):
        model(ids()[:, 2:], state=state, condition=conditions(2))
    with pytest.raises(ValueError, match="`condition` was passed, but no component reads it"):
        flagformer.build(FLAGS)(ids(), condition=conditions(2))
    with pytest.raises(FlagError, match="`embedding_norm` must be a norm of x alone"):
        flagformer.build({**FLAGS, "embedding_norm": ById})


class ById(Norm):
    """Tokens with even ids are doubled: a norm that reads the ids."""

    reads_side = True

    def __init__(self, dim):
        super().__init__()

    def forward(self, x, side):
        return x * (1 + (side.token_ids % 2 == 0)[..., None])


class OnlyX(ById):
    def forward(self, x):
        return x


def test_a_norm_of_your_own_reads_token_ids():
    model = build(norm=ById, pre_norm_has_final_norm=False)
    seen = []
    model.attn_layers.sublayers[0].fn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(ids())
    x = model.token_emb(ids()) + model.pos_emb(torch.arange(6)[None])
    assert torch.allclose(seen[0], x * (1 + (ids() % 2 == 0)[..., None]))
    state = model.init_state(2, 6)
    parts = [model(ids()[:, i : i + 2], state=state) for i in (0, 2, 4)]
    assert close(torch.cat(parts, 1), model(ids()))
    with pytest.raises(FlagError, match=r"the call OnlyX.forward\(x, side\) fails"):
        flagformer.build({**FLAGS, "norm": OnlyX})


def test_the_audit_gives_a_condition():
    report = flagformer.audit(build(rotary_pos_emb=True))
    assert report.passed, str(report)
