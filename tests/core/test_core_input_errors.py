"""Invalid inputs of a call: the error names the argument, its value and the accepted values."""

import re

import pytest
import torch
from core_models import B, S, T, context, ids, make, shared

import flagformer

YES = torch.ones(B, T, dtype=torch.bool)
PAIRS = torch.ones(T, T, dtype=torch.bool)

# model, arguments in addition to ids, expected text of the error
WRONG = [
    (
        "decoder",
        {"x": torch.tensor([[1, 11]])},
        "`x` must hold ids from 0 to 10 (`num_tokens`), but holds 11",
    ),
    (
        "decoder",
        {"x": torch.tensor([[-1, 4]])},
        "`x` must hold ids from 0 to 10 (`num_tokens`), but holds -1",
    ),
    ("decoder", {"x": ids().float()}, "`x` must be token ids [B, T] of int64 or int32, but is torch.float32"),
    ("decoder", {"x": ids().short()}, "`x` must be token ids [B, T] of int64 or int32, but is torch.int16"),
    ("decoder", {"x": ids() > 3}, "`x` must be token ids [B, T] of int64 or int32, but is torch.bool"),
    (
        "decoder",
        {"x": ids()[0]},
        "`x` must be token ids [B, T] of int64 or int32, but is torch.int64 of shape [9]",
    ),
    ("decoder", {"x": ids()[:, :0]}, "`x` must hold at least one row of one token, but has shape [2, 0]"),
    ("decoder", {"x": ids()[:0]}, "`x` must hold at least one row of one token, but has shape [0, 9]"),
    ("decoder", {"x": [[1, 2]]}, "`x` must be a tensor, but is list: [[1, 2]]"),
    ("decoder", {"x": torch.zeros(1, 17).long()}, "position 16 is beyond the learned positions"),
    ("decoder", {"mask": YES[:, :8]}, "`mask` must have shape [2, 9], but has [2, 8]"),
    ("decoder", {"mask": YES[0]}, "`mask` must have shape [2, 9], but has [9]"),
    ("decoder", {"mask": YES.float()}, "`mask` must be boolean (True = valid token), but is torch.float32"),
    ("decoder", {"mask": YES.tolist()}, "`mask` must be a tensor, but is list"),
    ("decoder", {"attn_mask": PAIRS.float()}, "`attn_mask` must be boolean (True = may attend)"),
    ("decoder", {"attn_mask": PAIRS[:, :8]}, "`attn_mask` must have shape [9, 9]"),
    ("decoder", {"attn_mask": PAIRS.expand(3, T, T)}, "but has [3, 9, 9]"),
    ("decoder", {"attn_mask": PAIRS.expand(2, 3, T, T)}, "but has [2, 3, 9, 9]"),
    ("decoder", {"attn_mask": PAIRS.expand(1, 2, 4, T, T)}, "but has [1, 2, 4, 9, 9]"),
    ("decoder", {"attn_mask": PAIRS[0]}, "but has [9]"),
    ("decoder", {"attn_mask": 1}, "`attn_mask` must be a tensor, but is int: 1"),
    (
        "decoder",
        {"x": ids().repeat(2, 1), "attn_mask": PAIRS.expand(4, T, T)},
        "`attn_mask` of shape [4, 9, 9] could mean 4 heads or 4 rows: give four dimensions",
    ),
    ("only_cross", {"context": context(16), "attn_mask": PAIRS}, "`attn_mask` is for self-attention"),
    ("decoder", {"context": context()}, "`context` was passed, but the model has no cross-attention"),
    ("decoder", {"context_mask": YES}, "`context_mask` must come with the `context`"),
    ("cross", {}, "`context` is required, because the model has cross-attention"),
    ("cross", {"context": context(4)}, "`context` must have shape [2, S, 6], but has [2, 5, 4]"),
    ("cross", {"context": context()[:1]}, "`context` must have shape [2, S, 6], but has [1, 5, 6]"),
    ("cross", {"context": context()[0]}, "`context` must have shape [2, S, 6], but has [5, 6]"),
    ("cross", {"context": 3}, "`context` must be a tensor, but is int"),
    (
        "cross",
        {"context": context(), "context_mask": YES},
        "`context_mask` must have shape [2, 5], but has [2, 9]",
    ),
    ("cross", {"context": context(), "context_mask": torch.ones(B, S)}, "`context_mask` must be boolean"),
    ("decoder", {"seq_start_pos": torch.tensor([1])}, "`seq_start_pos` must be 2 integers, one per row"),
    ("decoder", {"seq_start_pos": torch.tensor([1.0, 2.0])}, "but is torch.float32 of shape [2]"),
    ("decoder", {"seq_start_pos": torch.tensor([-1, 0])}, "must hold indices of at least 0, but is [-1, 0]"),
    ("decoder", {"seq_start_pos": [1, 0]}, "`seq_start_pos` must be a tensor, but is list: [1, 0]"),
    ("rotary", {"window": 0}, "`window` must be a whole number of at least 1, but is 0"),
    ("rotary", {"window": -3}, "`window` must be a whole number of at least 1, but is -3"),
    ("rotary", {"window": 2.0}, "`window` must be a whole number of at least 1, but is 2.0"),
    ("rotary", {"window": True}, "`window` must be a whole number of at least 1, but is True"),
    ("encoder", {"window": 3}, "`window` needs causal layers (Decoder, PrefixDecoder)"),
    ("decoder", {"seq_lens": [4, 5]}, "`seq_lens` must hold one list of lengths for each of the 2 rows"),
    ("decoder", {"seq_lens": 5}, "`seq_lens` must hold one list of lengths for each of the 2 rows, but is 5"),
    ("decoder", {"seq_lens": [[4, 5]]}, "for each of the 2 rows, but is [[4, 5]]"),
    ("decoder", {"seq_lens": [[4.5], [3]]}, "for each of the 2 rows, but is [[4.5], [3]]"),
    ("decoder", {"seq_lens": [["a"], [3]]}, "for each of the 2 rows, but is [['a'], [3]]"),
    ("decoder", {"seq_lens": [[], []]}, "for each of the 2 rows, but is [[], []]"),
    ("decoder", {"seq_lens": torch.tensor([4, 5])}, "for each of the 2 rows, but is tensor([4, 5])"),
    (
        "decoder",
        {"seq_lens": [[4, 6], [9]]},
        "lengths that sum to at most 9 in each row, but is [[4, 6], [9]]",
    ),
    (
        "decoder",
        {"seq_lens": [[-1, 4], [3]]},
        "lengths that sum to at most 9 in each row, but is [[-1, 4], [3]]",
    ),
    ("decoder", {"seq_lens": [[4], [5]], "mask": YES}, "`mask` and `seq_lens` cannot be combined"),
    ("decoder", {"seq_lens": [[4], [5]], "pos": torch.arange(T)}, "`seq_lens` and `pos` cannot be combined"),
    (
        "decoder",
        {"pos": torch.arange(9.0)},
        "`pos` must be integers of shape [9] or [2, 9], but is torch.float32",
    ),
    ("decoder", {"pos": torch.arange(8)}, "`pos` must be integers of shape [9] or [2, 9]"),
    ("decoder", {"pos": list(range(9))}, "`pos` must be a tensor, but is list"),
    ("decoder", {"pos": torch.arange(9) - 1}, "`pos` must hold positions from 0 on"),
    (
        "decoder",
        {"pos": torch.arange(9) + 8},
        "position 16 is beyond the learned positions (`max_seq_len` = 16)",
    ),
    (
        "decoder",
        {"prefix_attn_len": 3},
        "`prefix_attn_len` is for PrefixDecoder, but these layers are Decoder",
    ),
    ("prefix", {"prefix_attn_len": 2.5}, "must be a whole number from 0 on, or one per row, but is 2.5"),
    ("prefix", {"prefix_attn_len": "a"}, "must be a whole number from 0 on, or one per row, but is 'a'"),
    ("prefix", {"prefix_attn_len": -1}, "must be a whole number from 0 on, or one per row, but is -1"),
    ("prefix", {"prefix_attn_len": True}, "or one per row, but is True"),
    ("prefix", {"prefix_attn_len": torch.tensor([1, 2, 3])}, "or one per row, but is tensor([1, 2, 3])"),
    ("decoder", {"return_embeddings": True, "return_attn": True}, "only one `return_` argument can be True"),
    ("decoder", {"state": 3}, "`state` must come from `init_state`, but is int"),
]


@pytest.mark.parametrize(
    ("kind", "how", "text"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_error_names_the_argument(kind, how, text):
    how = {"x": ids(), **how}
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        shared(kind)(**how)
    assert len(str(caught.value).splitlines()) <= 3
    assert not isinstance(caught.value, flagformer.FlagError)


@pytest.mark.parametrize("argument", ["memories", "msak", "return_hiddens"])
def test_unknown_arguments_are_refused(argument):
    with pytest.raises(TypeError, match=argument):
        shared("decoder")(ids(), **{argument: None})


def test_layers_check_their_input():
    layers = shared("decoder").attn_layers
    with pytest.raises(ValueError, match=re.escape("`x` must have shape [B, T, 16], but has [2, 9]")):
        layers(ids())
    with pytest.raises(ValueError, match=re.escape("`mask` must have shape [2, 9], but has [2, 8]")):
        layers(torch.randn(B, T, 16), mask=YES[:, :8])


@pytest.mark.parametrize("flags", [{}, {"attn_flash": False}, {"rel_pos_bias": True}, {"attn_num_mem_kv": 2}])
@pytest.mark.parametrize(
    "side", [{"mask": ~YES}, {"attn_mask": ~PAIRS}, {"seq_start_pos": torch.tensor([9, 30])}]
)
def test_rows_without_valid_tokens_are_finite(flags, side):
    model = make(**flags)
    out = model(ids(), **side)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_context_without_valid_tokens_is_finite():
    model = make(cross_attend=True, cross_attn_dim_context=6)
    hidden = torch.zeros(B, S, dtype=torch.bool)
    out = model(ids(), context=context(), context_mask=hidden)
    other = model(ids(), context=context() + 1, context_mask=hidden)
    assert out.isfinite().all()
    assert torch.equal(out, other), "a masked context must not change the output"


def test_int32_ids_are_accepted():
    assert torch.equal(shared("decoder")(ids().int()), shared("decoder")(ids()))


def test_relative_positions_extend_beyond_max_seq_len():
    for flags in ({"rotary_pos_emb": True}, {"alibi_pos_bias": True}, {"rel_pos_bias": True},
                  {"scaled_sinu_pos_emb": True}, {"use_abs_pos_emb": False}):  # fmt: skip
        model = make(**flags)
        assert not model.absolute_positions
        assert model(torch.zeros(1, 40, dtype=torch.long)).isfinite().all()
    assert shared("decoder").absolute_positions
