"""Every form of prompt gives the same left-padded ids; invalid prompts are refused by name."""

import pytest
import torch
from torch import Tensor

from flagformer.generation import read_prompts

RAGGED = [[1, 2, 3], [4], [5, 6]]


def read(prompts, prompt_lens=None, num_tokens=10, pad_value=0):
    return read_prompts(prompts, prompt_lens, num_tokens, pad_value)


def right_padded(fill: int) -> Tensor:
    ids = torch.full((3, 3), fill)
    for row, tokens in zip(ids, RAGGED):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


@pytest.mark.parametrize(
    ("prompts", "lens"),
    [
        (RAGGED, None),
        ([torch.tensor(row) for row in RAGGED], None),
        (tuple(torch.tensor(row, dtype=torch.int32) for row in RAGGED), None),
        (right_padded(7), torch.tensor([3, 1, 2])),
        (right_padded(-100), [3, 1, 2]),
    ],
    ids=["lists", "tensors", "int32", "right padded", "padded with ignore_index"],
)
def test_ragged_prompts_are_left_padded(prompts, lens):
    result = read(prompts, lens, pad_value=8)
    assert result.ids.tolist() == [[1, 2, 3], [8, 8, 4], [8, 5, 6]]
    assert result.ids.dtype == torch.long
    assert result.starts.tolist() == [0, 2, 1]
    assert result.batched


@pytest.mark.parametrize("prompts", [[[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]])])
def test_equal_lengths_need_no_starts(prompts):
    result = read(prompts)
    assert result.ids.tolist() == [[1, 2], [3, 4]]
    assert result.starts is None


def test_prompts_shorter_than_the_tensor_leave_no_padding():
    result = read(torch.tensor([[1, 2, 0, 0], [3, 4, 0, 0]]), [2, 2])
    assert result.ids.tolist() == [[1, 2], [3, 4]]
    assert result.starts is None


@pytest.mark.parametrize("prompts", [torch.tensor([1, 2, 3]), [1, 2, 3], (1, 2, 3)])
def test_a_single_prompt_is_not_batched(prompts):
    result = read(prompts)
    assert result.ids.tolist() == [[1, 2, 3]]
    assert not result.batched


def test_the_callers_tensor_is_not_modified():
    given = right_padded(7)
    read(given, [3, 1, 2]).ids.fill_(0)
    assert torch.equal(given, right_padded(7))


@pytest.mark.parametrize(
    ("prompts", "lens", "says"),
    [
        ([], None, "`prompts` must hold at least one prompt, but is empty"),
        (torch.zeros(0, 4, dtype=torch.long), None, "`prompts` must hold at least one prompt"),
        (
            torch.zeros(2, 0, dtype=torch.long),
            None,
            "`prompts[0]` must hold at least one token, but is empty",
        ),
        ([[1], []], None, "`prompts[1]` must hold at least one token, but is empty"),
        ([torch.tensor([1]), torch.tensor([]).long()], None, "`prompts[1]` must hold at least one token"),
        ([[1, 2], [3, 10]], None, "`prompts[1]` must hold ids from 0 to 9, but holds 10"),
        (torch.tensor([1, -100]), None, "`prompts` must hold ids from 0 to 9, but holds -100"),
        (
            torch.tensor([[1.0, 2.0]]),
            None,
            "`prompts[0]` must hold whole-number ids (torch.long), but is torch.float",
        ),
        ([[1, 2.5]], None, "`prompts[0]` must hold whole-number ids"),
        ([[True, False]], None, "`prompts[0]` must hold whole-number ids (torch.long), but is torch.bool"),
        (["ab", "c"], None, "`prompts[0]` must be a 1-d tensor or a list of ints, but is 'ab'"),
        ([[[1, 2]]], None, "`prompts[0]` must be 1-d, but has shape [1, 2]"),
        ([1, [2]], None, "`prompts` must be a 1-d tensor or a list of ints"),
        ("hello", None, "`prompts` must be a tensor, a list of tensors or a list of ints, but is a str"),
        (torch.zeros(1, 2, 3), None, "`prompts` must be of shape [B, T] or [T], but is [1, 2, 3]"),
        ([[1], [2, 3]], [1, 2], "`prompt_lens` must be left out when `prompts` is a list"),
        (
            right_padded(0),
            [3, 1],
            "`prompt_lens` must hold 3 whole numbers from 1 to 3, one per row, but is [3, 1]",
        ),
        (right_padded(0), [3, 0, 2], "but is 0 at row 1"),
        (right_padded(0), [3, 4, 2], "but is 4 at row 1"),
        (right_padded(0), torch.tensor([3.0, 1.0, 2.0]), "but is 3.0 at row 0"),
        (right_padded(0), torch.tensor(3), "`prompt_lens` must hold 3 whole numbers"),
    ],
)
def test_an_invalid_prompt_is_refused_by_name(prompts, lens, says):
    with pytest.raises(ValueError) as error:
        read(prompts, lens)
    assert says in str(error.value)
