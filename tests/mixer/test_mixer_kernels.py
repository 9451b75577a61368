"""flash-linear-attention: its call contract with a stand-in on CPU; its numbers where there is CUDA."""

import importlib.util
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from mixer_models import mixer, read, rows, whole

import flagformer
from flagformer.mixer.kernels import flash_linear_attention
from flagformer.mixer.scan import ScanInputs, recurrent, scan
from flagformer.mixer.tokens import BlockTokens

SCANS = pytest.mark.parametrize("name", ["gated_deltanet", "mamba2"])
CUDA = torch.device("cuda")
MODELS = {"num_tokens": 11, "max_seq_len": 64, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


class Standin:
    """The functions of flash-linear-attention by the definition, with the arguments that it documents."""

    def __init__(self):
        self.calls = []

    def compute(self, form, q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens):
        assert output_final_state
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert beta is None or beta.dtype == torch.bfloat16
        assert g.dtype == initial_state.dtype == torch.float32
        assert q.shape[:3] == k.shape[:3] == v.shape[:3] == g.shape
        self.calls.append(form)
        q = q.float() * (q.shape[-1] ** -0.5 if scale is None else scale)
        given = [q, k.float(), v.float(), g, None if beta is None else beta.float()]
        if cu_seqlens is None:
            parts = [(slice(None), 0, q.shape[1])]
        else:
            assert q.shape[0] == 1
            assert cu_seqlens.dtype == torch.long
            assert len(initial_state) == len(cu_seqlens) - 1
            ends = cu_seqlens.tolist()
            parts = [(slice(i, i + 1), one, two) for i, (one, two) in enumerate(pairwise(ends))]
        found = [
            recurrent(ScanInputs(*(None if x is None else x[:, one:two] for x in given)), initial_state[row])
            for row, one, two in parts
        ]
        out, new = torch.cat([out for out, _ in found], dim=1), torch.cat([new for _, new in found])
        return out.to(v.dtype), new

    def chunk_gated_delta_rule(
        self, q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False,
        use_qk_l2norm_in_kernel=False, cu_seqlens=None,
    ):  # fmt: skip
        return self.compute(
            "chunk delta", q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens
        )

    def fused_recurrent_gated_delta_rule(
        self, q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None,
        output_final_state=False, use_qk_l2norm_in_kernel=False, cu_seqlens=None,
    ):  # fmt: skip
        return self.compute(
            "steps delta", q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens
        )

    def chunk_simple_gla(
        self, q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False,
        cu_seqlens=None,
    ):  # fmt: skip
        return self.compute(
            "chunk gla", q, k, v, g, None, scale, initial_state, output_final_state, cu_seqlens
        )

    def fused_recurrent_simple_gla(
        self, q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False,
        reverse=False, cu_seqlens=None,
    ):  # fmt: skip
        return self.compute(
            "steps gla", q, k, v, g, None, scale, initial_state, output_final_state, cu_seqlens
        )


@pytest.fixture
def standin(monkeypatch):
    """The package, in a tested version, on CPU."""
    found = Standin()
    for rule in ("gated_delta_rule", "simple_gla"):
        module = ModuleType(f"fla.ops.{rule}")
        for form in ("chunk", "fused_recurrent"):
            setattr(module, f"{form}_{rule}", getattr(found, f"{form}_{rule}"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(flash_linear_attention, "version", lambda package: "0.6.0")
    monkeypatch.setattr(flash_linear_attention, "DEVICE", "cpu")
    flash_linear_attention._missing.cache_clear()
    yield found
    flash_linear_attention._missing.cache_clear()


def near(one, two, most=0.02):
    """bf16."""
    assert (one.double() - two.double()).abs().max() < most * float(two.double().abs().max())


def half(name):
    return mixer(name).bfloat16()


def inputs(length, beta, starts=None):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, length, 4, 8).bfloat16().float()
    rates = torch.rand(2, length, 4).bfloat16().float() if beta else None
    state = torch.randn(2, 4, 8, 8)
    q, k = (torch.nn.functional.normalize(x[:, :, :2], dim=-1).bfloat16().float() for x in (q, k))
    return ScanInputs(q, k, v, -torch.rand(2, length, 4), rates, starts), state


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize(("length", "packed"), [(5, False), (70, False), (70, True), (3, True)])
def test_the_same_as_plain_torch(standin, beta, length, packed):
    """Groups of heads, documents (one begins at the first token), a state before the first token."""
    starts = None
    if packed:
        starts = torch.zeros(2, length, dtype=torch.bool)
        starts[0, 1], starts[1, 0], starts[1, length - 1] = True, True, True
    given, state = inputs(length, beta, starts)
    with torch.no_grad():
        out, new = flash_linear_attention.scan(given, state, torch.bfloat16)
    want, after = scan(given, state)
    near(out, want)
    torch.testing.assert_close(new, after)
    form = ("chunk" if length > flash_linear_attention.SHORT else "steps") + (" delta" if beta else " gla")
    assert standin.calls == [form]


@SCANS
def test_mixers_call_it_in_half_precision_alone(standin, name):
    """Blocks of one document with padding, and a training step, whose short rows take the chunked kernel."""
    x, valid = rows(2, 40).bfloat16(), torch.arange(40) >= torch.tensor([[0], [11]])
    model = half(name)
    with torch.no_grad():
        want = whole(mixer(name), x.double(), BlockTokens(valid))[0]
        near(read(model, x, [40], valid)[0][valid], want[valid], 0.05)
        near(read(model, x, [1, 30, 9], valid)[0][valid], want[valid], 0.05)
    assert len(standin.calls) == 4
    assert all(call.startswith("steps") for call in standin.calls)
    whole(model, x)[0].sum().backward()
    assert standin.calls[-1].startswith("chunk")
    whole(mixer(name).float(), x.float())
    assert len(standin.calls) == 5


@SCANS
def test_explain_names_what_runs(standin, name):
    model = flagformer.build({**MODELS, "mixer": name})
    assert "in mixer: plain torch, in chunks of 32 tokens: flash-linear-attention computes in bfloat16" in (
        model.explain()
    )
    assert "in mixer: flash-linear-attention" in model.bfloat16().explain()


def test_reasons(monkeypatch):
    refusal, bf16 = flash_linear_attention.refusal, torch.bfloat16
    assert "runs on CUDA, and this model is on cpu" in refusal(torch.device("cpu"), bf16, 64)
    assert "float32" in refusal(CUDA, torch.float32, 64)
    assert "at most 256 dims" in refusal(CUDA, bf16, 512)
    versions = {"": "is not installed", "0.3.2": "0.3.2 is installed", "1.0": "1.0 is installed"}
    for found, reason in versions.items():
        monkeypatch.setattr(flash_linear_attention, "_version", lambda package, found=found: found)
        flash_linear_attention._missing.cache_clear()
        assert reason in refusal(CUDA, bf16, 64)
    monkeypatch.setattr(flash_linear_attention, "_version", lambda package: "0.6.0")
    monkeypatch.setitem(sys.modules, "fla", None)
    flash_linear_attention._missing.cache_clear()
    assert "cannot be imported" in refusal(CUDA, bf16, 64)
    flash_linear_attention._missing.cache_clear()


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("fla") is None,
    reason="needs CUDA and flash-linear-attention",
)
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("length", [5, 300])
@pytest.mark.parametrize("packed", [True, False])
def test_the_kernels_are_plain_torch(beta, length, packed):
    """Values and gradients, in bf16."""
    starts = torch.arange(length).expand(2, -1) % 90 == 4 if packed else None
    given, state = inputs(length, beta, starts)
    found = []
    for kernel in (True, False):
        leaves = [None if x is None else x.cuda().requires_grad_() for x in (*given[:5], state)]
        one = ScanInputs(*leaves[:5], None if starts is None else starts.cuda())
        run = flash_linear_attention.scan if kernel else scan
        out, new = run(one, leaves[5], torch.bfloat16) if kernel else run(one, leaves[5])
        (out.square().sum() + new.sum()).backward()
        found.append([out, new, *(x.grad for x in leaves if x is not None)])
    for one, two in zip(*found):
        assert (one - two).abs().max() < 0.03 * float(two.abs().max())
