"""Memory replay: the gradients of back-propagation through all segments, with the graph of one."""

import pytest
import torch
import torch.nn.functional as F

from flagformer import Memformer, XLAutoregressiveWrapper, build, memory_replay_backprop, train_segments
from flagformer.attention.cores.kmeans import KMeans
from flagformer.flow import Layout, RecurrentState

HALF = {"num_tokens": 11, "max_seq_len": 5, "depth": 2, "heads": 2, "attn_dim_head": 8}
ENC = {f"enc_{name}": value for name, value in HALF.items()}
DEC = {f"dec_{name}": value for name, value in {**HALF, "max_seq_len": 9}.items()}
DROPOUT = {"ff_dropout": 0.2, "attn_dropout": 0.2, "layer_dropout": 0.1}
# fp64 sums in another order, over eight segments; a wrong memory gradient is off by more than 1e-4
EXACT = 1e-10
CROSS_ENTROPY = 1e-6  # if the memory is fp32
SEGMENTS = 8


def memformer(encoder_only=False, **flags):
    torch.manual_seed(0)
    halves = ENC if encoder_only else {**ENC, **DEC}
    model = Memformer(dim=16, num_memory_slots=3, encoder_only=encoder_only, **halves, **flags)
    return model.double().train()


def source():
    draws = torch.Generator().manual_seed(1)
    src = torch.randint(11, (2, 5 * SEGMENTS - 2), generator=draws)
    valid = torch.rand(2, 5 * SEGMENTS - 2, generator=draws) > 0.2
    tgt = [torch.randint(11, (2, 7), generator=draws) for _ in range(SEGMENTS)]
    return src, valid, tgt


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def agree(got, want, most=EXACT):
    assert got.keys() == want.keys()
    worst = {name: (got[name] - want[name]).abs().max().item() for name in want}
    assert max(worst.values()) < most, max(worst, key=worst.get)
    assert any(value.abs().max() > 1e-4 for name, value in want.items() if "slots" in name)


def through_all(model, src, valid, tgt, loss_fn=None):
    """Full back-propagation; the losses."""
    mems, losses = None, []
    for number, (part, mask) in enumerate(zip(src.split(5, dim=1), valid.split(5, dim=1))):
        results, outputs = model(part, tgt[number] if tgt else None, mems, mask, return_outputs=True)
        mems = results.mem
        losses.append(results.dec_out if loss_fn is None else loss_fn(results, number))
        if loss_fn is not None and outputs.extra_loss is not None:
            losses[-1] = losses[-1] + outputs.extra_loss
    sum(losses).backward()
    return torch.stack(losses).detach()


def of_output(results, number):
    return (results.enc_out * torch.linspace(-1, 1, 16).double()).sin().mean() * (number + 1)


@pytest.mark.parametrize("update", ["gru", "bmn"])
@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize(
    "more", [{}, DROPOUT, {"reversible": True, "ff_dropout": 0.2}], ids=["plain", "dropout", "reversible"]
)
def test_gradients_equal_those_through_all_segments(update, encoder_only, more):
    prefixes = ("enc_",) if encoder_only else ("enc_", "dec_")
    flags = {prefix + name: value for prefix in prefixes for name, value in more.items()}
    model = memformer(encoder_only, memory_update=update, num_mem_updates=2, **flags)
    src, valid, tgt = source()
    tgt, loss_fn = (None, of_output) if encoder_only else (tgt, None)
    torch.manual_seed(3)
    want = through_all(model, src, valid, tgt, loss_fn)
    full = gradients(model)
    torch.manual_seed(3)
    losses = memory_replay_backprop(model, src, tgt, valid, loss_fn=loss_fn)
    assert (losses - want).abs().max() < EXACT
    agree(gradients(model), full)


def test_gradients_under_autocast():
    """Weights cast without a graph in the first run get gradients in the second."""
    model = memformer().float()
    src, valid, tgt = source()
    with torch.autocast("cpu", torch.bfloat16):
        through_all(model, src, valid, tgt)
        full = gradients(model)
        memory_replay_backprop(model, src, tgt, valid)
    for name, got in gradients(model).items():
        # sums over eight segments, in bf16 and in fp32
        assert (got - full[name]).norm() < 0.05 * full[name].norm(), name


def test_targets_of_some_segments_and_of_the_last():
    model = memformer()
    src, valid, tgt = source()
    some = [one if number in (1, 4) else None for number, one in enumerate(tgt)]
    through_all(model, src, valid, some)
    full = gradients(model)
    losses = memory_replay_backprop(model, src, some, valid)
    agree(gradients(model), full)
    assert [number for number, loss in enumerate(losses.tolist()) if loss] == [1, 4]
    through_all(model, src, valid, [None] * (SEGMENTS - 1) + tgt[-1:])
    full = gradients(model)
    memory_replay_backprop(model, src, tgt[-1], valid)
    agree(gradients(model), full)


def test_random_numbers_continue_after_it():
    """The next training step uses other random numbers."""
    model = memformer(**{f"enc_{name}": value for name, value in DROPOUT.items()})
    src, valid, tgt = source()
    first = memory_replay_backprop(model, src, tgt, valid)
    assert not torch.equal(first, memory_replay_backprop(model, src, tgt, valid))


def held_at_most(work):
    """The peak bytes held by autograd."""
    saved, most = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal saved, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            saved += self.size
            most = max(most, saved)

        def __del__(self):
            nonlocal saved
            saved -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return most


def test_memory_does_not_grow_with_segments():
    model = memformer()

    def kept(count):
        src = torch.randint(11, (2, 5 * count))
        return held_at_most(lambda: memory_replay_backprop(model, src, torch.randint(11, (2, 7))))

    assert kept(64) <= 1.1 * kept(2)


def test_a_segments_memory_is_no_slice_of_its_hidden_states():
    model = stream_model(rotary_pos_emb=True, max_mem_len=2)
    _, left = model(torch.randint(11, (1, 5)), return_mems=True, detach_mems=True)
    for kept in (left.slots, *left):
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def stream_model(**flags):
    torch.manual_seed(0)
    sizes = {"dim": 16, "cross_attend": True, "num_memory_slots": 3, **HALF}
    return build({**sizes, **flags}).double().train()


@pytest.mark.parametrize(
    "flags",
    [
        {"rotary_pos_emb": True},
        {"memory_update": "bmn", **DROPOUT},
        {"alibi_pos_bias": True, "reversible": True, "ff_dropout": 0.2},
        {"rel_pos_bias": True, "max_mem_len": 4},
    ],
    ids=["rotary", "dropout", "reversible", "with memories of tokens"],
)
def test_train_segments_equals_back_propagation_through_a_stream(flags):
    model = stream_model(**flags)
    draws = torch.Generator().manual_seed(1)
    x = torch.randint(11, (2, 5 * SEGMENTS - 1), generator=draws)
    valid = torch.rand(x.shape, generator=draws) > 0.2
    torch.manual_seed(3)
    mems, total = None, 0.0
    targets = x[:, 1:].masked_fill(~(valid[:, 1:] & valid[:, :-1]), -100)
    for start in range(0, x.shape[1] - 1, 5):
        part = slice(start, min(start + 5, x.shape[1] - 1))
        logits, mems = model(x[:, part], mask=valid[:, part], mems=mems, return_mems=True)
        total = total + F.cross_entropy(logits.flatten(0, 1), targets[:, part].flatten(), reduction="sum")
    loss = total / (targets != -100).sum()
    loss.backward()
    full = gradients(model)
    torch.manual_seed(3)
    losses, left = train_segments(model, x, valid)
    agree(gradients(model), full)
    counts = torch.stack([(part != -100).sum() for part in targets.split(5, dim=1)])
    assert ((losses * counts).sum() / counts.sum() - loss).abs() < EXACT
    assert (left.slots - mems.slots).abs().max() < EXACT
    assert not left.slots.requires_grad
    losses, _ = train_segments(model, x, mems=left)
    assert losses.isfinite().all()


ROUTING = {"rotary_pos_emb": True, "num_clusters": 2, "window_size": 4, "commitment_factor": 0.1}


def centroids(model):
    """The weights after an optimizer step."""
    model.update_kmeans()
    return [
        part.clone() for one in model.modules() if isinstance(one, KMeans) for part in (one.means, one.counts)
    ]


@pytest.mark.parametrize("more", [{}, {"reversible": True}, {"checkpoint": "sublayer"}], ids=str)
def test_centroids_count_each_token_of_a_stream_once(more):
    """And the auxiliary losses of all segments have gradients."""
    found = []
    x = torch.randint(11, (2, 5 * SEGMENTS + 1), generator=torch.Generator().manual_seed(1))
    for replayed in (False, True):
        model = stream_model(**ROUTING, **more)
        if replayed:
            train_segments(model, x)
        else:
            XLAutoregressiveWrapper(model)(x).backward()
        grads = gradients(model)
        counts = [one.pending_stats.counts.sum().item() for one in model.modules() if isinstance(one, KMeans)]
        assert counts == [2 * 2 * 2 * 5 * SEGMENTS] * 2, "heads, queries and keys, rows"
        found.append((grads, centroids(model)))
    agree(found[1][0], found[0][0], CROSS_ENTROPY)
    for got, want in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("encoder_only", [False, True])
def test_centroids_count_each_token_of_a_source_once(encoder_only):
    flags = {prefix + name: value for prefix in ("enc_", "dec_") for name, value in ROUTING.items()}
    flags = {name: value for name, value in flags.items() if name.startswith("enc_") or not encoder_only}
    src, valid, tgt = source()
    tgt, loss_fn = (None, of_output) if encoder_only else (tgt, None)
    found = []
    for replayed in (False, True):
        model = memformer(encoder_only, **flags)
        if replayed:
            memory_replay_backprop(model, src, tgt, valid, loss_fn=loss_fn)
        else:
            through_all(model, src, valid, tgt, loss_fn)
        found.append((gradients(model), centroids(model)))
    agree(found[1][0], found[0][0])
    for got, want in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(got, want)


def test_a_failed_first_run_counts_nothing():
    model = memformer(True, **{"enc_" + name: value for name, value in ROUTING.items()})

    def fails(results, number):
        if number == 2:
            raise RuntimeError("as asked")
        return of_output(results, number)

    with pytest.raises(RuntimeError, match="as asked"):
        memory_replay_backprop(model, source()[0], loss_fn=fails)
    assert all(one.pending_stats is None for one in model.modules() if isinstance(one, KMeans))


# the memory of a model without slots
XL = RecurrentState((torch.zeros(2, 3, 16),), Layout.arange(3, torch.device("cpu")))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, s: memory_replay_backprop(m, s), "`tgt` must be given"),
        (
            lambda m, s: memory_replay_backprop(m, s, [s]),
            "a tensor or None for each of 2 segments, but holds 1",
        ),
        (lambda m, s: memory_replay_backprop(m, s, [None, None]), "`tgt` must be given"),
        (lambda m, s: memory_replay_backprop(m, s, [s, 3]), "segments, but holds 2, of int"),
        (lambda m, s: memory_replay_backprop(m, s, 3), "segments, but is int"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :4] + 11), "`tgt` must hold ids from 0 to 10"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :1]), "`tgt` must be ids of shape"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :4], mems=torch.zeros(3, 3, 16)), "each of 2 rows"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :4], mems=[torch.zeros(2, 3, 16)]), "but is list"),
        (lambda m, s: memory_replay_backprop(stream_model(), s, s), "`model` must be a Memformer"),
        (lambda m, s: memory_replay_backprop(m, s, loss_fn=0.5), "`loss_fn` must be a function"),
        (lambda m, s: memory_replay_backprop(m, s, loss_fn=lambda r, n: r.mem), "gave a tensor of shape"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :4], tgt_mask=s > 3), "`tgt_mask` must have shape"),
        (lambda m, s: memory_replay_backprop(m, s, s[:, :4], s[:, 1:] > 3), "`src_mask` must have shape"),
        (lambda m, s: memory_replay_backprop(m, s.float(), s[:, :4]), "`src` must be token ids"),
        (lambda m, s: memory_replay_backprop(memformer(True), s), "`loss_fn` must be given"),
        (lambda m, s: memory_replay_backprop(memformer(True), s, s), "no decoder"),
        (lambda m, s: train_segments(stream_model(num_memory_slots=0), s), "`num_memory_slots`"),
        (lambda m, s: train_segments(stream_model(), s, mems=XL), "but is RecurrentState"),
        (lambda m, s: train_segments(m, s), "`model` must be a TransformerWrapper, but is Memformer"),
        (lambda m, s: train_segments(stream_model(model="encoder"), s), "`model` must be causal"),
        (lambda m, s: train_segments(stream_model(max_mem_len=4), s), "`model` has learned positions"),
        (lambda m, s: train_segments(stream_model(), s.tolist()), "`x` must be a tensor"),
        (
            lambda m, s: train_segments(stream_model(), torch.cat([s, s[:, :1] + 11], dim=1)),
            "`x` must hold ids",
        ),
        (lambda m, s: train_segments(stream_model(), s, s[:, 1:] > 3), "`mask` must have shape"),
        (lambda m, s: train_segments(stream_model(), s[:, :1]), "T at least 2"),
        (
            lambda m, s: train_segments(stream_model(), s, mems=torch.zeros(3, 3, 16).double()),
            "each of 2 rows",
        ),
    ],
)
def test_invalid_calls_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(memformer(), torch.arange(16).view(2, 8) % 11)
