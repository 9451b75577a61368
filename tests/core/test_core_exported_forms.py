"""Each form of a call exports to one program, valid for other input values too."""

import pytest
import torch
from core_models import B, S, T, context, ids, make

from commit_sample import part_of
from flagformer.ops.lengths import LONG

# Lengths at which eager execution changes its path.
BY_LENGTH = {
    "biases": {"alibi_pos_bias": True},
    "clusters": {"num_clusters": 3, "window_size": 4},
    "local heads": {"n_local_attn_heads": 2, "local_attn_window_size": 4},
    "fixed windows": {
        "n_local_attn_heads": 2,
        "local_attn_window_size": 4,
        "local_attn_fixed_windows": True,
    },
    "recent past": {"attn_max_attend_past": 12},
    "largest scores": {"attn_sparse_topk": 12},
    "cluster top-k": {"model": "encoder", "num_clusters": 3, "window_size": 12, "routing_selection": "topk"},
}
ROWS = torch.arange(T)
# flags; example inputs for the export; other inputs of the same shapes.
FORMS = {
    "mask": ({}, {"mask": torch.ones(B, T).bool().tril(5)}, {"mask": torch.ones(B, T).bool().tril(3)}),
    "left padding": (
        {"alibi_pos_bias": True},
        {"seq_start_pos": torch.tensor([0, 3])},
        {"seq_start_pos": torch.tensor([2, 0])},
    ),
    "packed": (
        {"rotary_pos_emb": True},
        {"seq_lens": torch.tensor([[4, 5], [9, 0]])},
        {"seq_lens": torch.tensor([[7, 2], [1, 8]])},
    ),
    "positions": ({}, {"pos": ROWS.clone()}, {"pos": ROWS.flip(0) + 5}),
    "pairs": (
        {},
        {"attn_mask": torch.ones(T, T, dtype=torch.bool).tril(-1)},
        {"attn_mask": torch.ones(T, T, dtype=torch.bool).triu(-2)},
    ),
    "prefix": (
        {"model": "prefix_decoder"},
        {"prefix_attn_len": torch.tensor([2, 4])},
        {"prefix_attn_len": torch.tensor([7, 0])},
    ),
    "context": (
        {"cross_attend": True, "cross_attn_dim_context": 6},
        {"context": context(), "context_mask": torch.arange(S) < torch.tensor([[5], [2]])},
        {"context": context() + 1, "context_mask": torch.arange(S) < torch.tensor([[1], [4]])},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("form", part_of(BY_LENGTH, 3))
def test_a_strict_program_runs_short_and_long_rows(form):
    """Strict export traces the Python code, and comparisons of lengths there specialise the program."""
    model = make(depth=1, **BY_LENGTH[form], max_seq_len=LONG + 9).double()
    lengths = ({1: torch.export.Dim.DYNAMIC(min=2, max=LONG + 9)},)
    program = torch.export.export(model, (ids(),), dynamic_shapes=lengths, strict=True).module()
    for length in (2, T, 40, LONG + 9):
        rows = ids().repeat(1, length)[:, :length]
        torch.testing.assert_close(program(rows), model(rows), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_form_exports(form):
    flags, given, others = FORMS[form]
    model = make(depth=1, **flags).double()
    given, others = (
        {name: value.double() if value.is_floating_point() else value for name, value in how.items()}
        for how in (given, others)
    )
    program = torch.export.export(model, (ids(),), given, strict=False).module()
    wanted = [model(ids(), **how) for how in (given, others)]
    assert not torch.equal(*wanted)
    for how, want in zip((given, others), wanted):
        got = program(ids(), **how)
        assert got.shape == (B, T, 11)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)  # fp64 sums of magnitude about 1
