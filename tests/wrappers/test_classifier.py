"""SequenceClassifier: pooling by hand, padding, every flag of an encoder, storage, mistakes."""

import copy
import pickle

import pytest
import torch

import flagformer
from flagformer import SequenceClassifier
from flagformer.flags import SLOTS
from flagformer.lab.reference import choices
from flagformer.wrappers.classifier import FIXED
from perturbed_models import perturbed

SIZES = {"num_tokens": 11, "max_seq_len": 12, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
BASE = {"model": "classifier", "num_classes": 5, **SIZES}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
IDS = torch.tensor([[3, 0, 10, 7, 1, 4], [1, 1, 2, 5, 9, 8]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()


def build(**flags):
    return perturbed({**BASE, **flags}).eval()


@pytest.mark.parametrize("pooling", ["first", "mean", "class"])
@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_of_one_vector_for_each_row(pooling, pooler, masked):
    """W tanh(W' x + b') + b of the first token, the mean over tokens or the class token (1810.04805)."""
    model, mask = build(pooling=pooling, pooler=pooler), MASK if masked else None
    logits, embeddings = model(IDS, mask=mask, return_logits_and_embeddings=True)
    assert embeddings.shape == (2, 7 if pooling == "class" else 6, 16)
    lengths = [6, 4 if masked else 6]
    x = embeddings[:, 0]
    if pooling == "mean":
        x = torch.stack([embeddings[row, :length].sum(0) / length for row, length in enumerate(lengths)])
    if pooler:
        x = torch.tanh(x @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(logits, x @ model.head.weight.T + model.head.bias, **CLOSE)
    assert torch.equal(model(IDS, mask=mask), logits)


@pytest.mark.parametrize("pooling", ["first", "mean", "class", "last"])
@pytest.mark.parametrize("position", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_padding_on_either_side_changes_nothing(pooling, position):
    model = build(pooling=pooling, **position)
    short = model(IDS[1:, :4])
    for left in (0, 2):
        ids, mask = IDS[1:].roll(left, 1), MASK[1:].roll(left, 1)
        ids = torch.where(mask, ids, 7)
        if position or not left:  # absolute positions count columns
            torch.testing.assert_close(model(ids, mask=mask), short, **CLOSE)
        starts = torch.tensor([left])
        torch.testing.assert_close(model(ids[:, : left + 4], seq_start_pos=starts), short, **CLOSE)
        torch.testing.assert_close(model(ids, mask=mask, seq_start_pos=starts), short, **CLOSE)


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("left", [0, 2])
def test_the_last_token_is_that_of_the_mask(pooler, left):
    """W tanh(W' x + b') + b of column 5 of the first row, and of the fourth token of the second."""
    model = build(pooling="last", pooler=pooler)
    ids, mask = (torch.cat([one[:1], one[1:].roll(left, 1)]) for one in (IDS, MASK))
    logits, embeddings = model(ids, mask=mask, return_logits_and_embeddings=True)
    x = torch.stack([embeddings[0, 5], embeddings[1, 3 + left]])
    if pooler:
        x = torch.tanh(x @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(logits, x @ model.head.weight.T + model.head.bias, **CLOSE)


def test_the_class_token_is_learned_and_in_front():
    model, seen = build(pooling="class"), {}
    model.encoder.attn_layers.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    before = model(IDS)
    assert torch.equal(seen["x"][:, 0], model.class_token.token.expand(2, -1))
    assert seen["x"].shape == (2, 7, 16)
    with torch.no_grad():
        model.class_token.token.mul_(-1)
    assert (model(IDS) - before).abs().max() > 1e-3


def test_without_classes_it_returns_the_vector_of_a_row():
    model = build(num_classes=None, pooling="mean")
    vectors, embeddings = model(IDS, return_logits_and_embeddings=True)
    torch.testing.assert_close(vectors, embeddings.mean(1), **CLOSE)


def test_auxiliary_losses():
    model = build(ff_moe=True).train()
    logits, outputs = model(IDS, return_losses=True)
    assert outputs.logits is logits
    assert outputs.extra_loss.requires_grad
    assert model.has_losses


@pytest.mark.parametrize("flags", [{}, {"pooling": "class", "pooler": True}, {"num_token_types": 2}])
def test_every_parameter_is_trained(flags):
    model = build(**flags).train()
    model(IDS).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


ENCODER = [
    choice for choice in choices()
    if choice.component is not None and SLOTS[choice.component.slot].scope != "model"
]  # fmt: skip


@pytest.mark.parametrize("choice", ENCODER, ids=lambda choice: choice.name)
def test_every_flag_of_an_encoder_works(choice):
    needs = {need.flag for need in choice.component.requires}
    if "causal" in needs or set(FIXED) & {*choice.flags, *choice.extra}:
        with pytest.raises(flagformer.FlagError):
            build(**choice.extra, **choice.flags)
        return
    model = build(**choice.extra, **choice.flags)
    rows = model(IDS, mask=MASK)
    assert rows.shape == (2, 5)
    for row in (0, 1):
        one = slice(row, row + 1)
        torch.testing.assert_close(model(IDS[one], mask=MASK[one]), rows[one], **CLOSE)
    assert flagformer.build(model.flags).flags == model.flags


def test_copies_and_files_preserve_the_model(tmp_path):
    model = build(pooling="class", pooler=True, num_token_types=2, emb_dim=12)
    want = model(IDS, mask=MASK)
    model.save(tmp_path)
    made = [flagformer.load(tmp_path).eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in made:
        assert torch.equal(other(IDS, mask=MASK), want)
        assert other.flags == model.flags
        assert other.num_params() == model.num_params()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IDS, mask=MASK), want, **CLOSE)
    assert "5 classes, class pooling" in model.explain()


@pytest.mark.parametrize(
    ("flags", "flag", "says"),
    [
        ({"pooling": "max"}, "pooling", "must be one of 'first', 'mean', 'class', 'last', but is 'max'"),
        ({"num_classes": 0}, "num_classes", "must be at least 1, but is 0"),
        ({"num_clases": 2}, "num_clases", "is not a flag"),
        ({"causal": True}, "causal", "cannot be given, because an encoder"),
        ({"logits_dim": 3}, "logits_dim", "use `num_classes`"),
        ({"tie_embedding": True}, "tie_embedding", "use `num_classes`"),
        ({"cross_attend": True}, "cross_attend", "the encoder reads only its row"),
        ({"max_mem_len": 3}, "max_mem_len", "a row is read whole"),
        ({"custom_layers": "acf", "depth": None}, "custom_layers", "must hold no 'c'"),
    ],
)
def test_mistakes_are_named(flags, flag, says):
    given = {name: value for name, value in {**BASE, **flags}.items() if value is not None}
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.check(given)
    found = {finding.flag: finding.message for finding in error.value.findings}
    assert says in found[flag]


def test_all_mistakes_are_in_one_error():
    with pytest.raises(flagformer.FlagError) as error:
        SequenceClassifier(pooling="max", num_tokens=3, max_seq_len=4, dim=16, causal=True)
    assert {finding.flag for finding in error.value.findings} == {"pooling", "causal", "depth"}


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"mask": MASK & False}, "at least one token in each row, but row 0 has none"),
        ({"mask": MASK[:, :3]}, r"must have shape \[2, 6\]"),
        ({"x": IDS.float()}, "must be token ids"),
        ({"return_losses": True, "return_logits_and_embeddings": True}, "must be False with `return_losses`"),
    ],
)
def test_wrong_arguments_are_named(how, says):
    with pytest.raises(ValueError, match=says):
        build()(how.pop("x", IDS), **how)


def test_the_loss_of_next_tokens_refuses_it():
    with pytest.raises((ValueError, TypeError)):
        flagformer.AutoregressiveWrapper(build())
