"""Log-likelihoods of requests, and the tokens of a model's texts: without lm_eval."""

import json
import sys

import pytest
import torch
from lm_eval_models import FLAGS, LENGTH, SIZES, byte_tokenizer, model_of
from typer.testing import CliRunner

import flagformer
from flagformer.lab.cli.main import app
from flagformer.lab.lm_eval.scoring import Request, score
from flagformer.lab.lm_eval.tokens import ByteTokens, FileTokens, tokens_of


def requests():
    """20 requests of 2 to 33 tokens; three share their inputs, one is there twice."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for count in range(17):
        ids = torch.randint(256, (2 + 2 * count - (count == 16),), generator=generator).tolist()
        cut = 1 + count % (len(ids) - 1)
        found.append(Request(tuple(ids[:cut]), tuple(ids[cut:])))
    longest = found[-1].context + found[-1].targets
    same = [Request(longest[:cut], (*longest[cut:-1], last)) for cut, last in ((9, 7), (20, longest[-1]))]
    return [*found, *same, found[3]]


@pytest.mark.parametrize("name", FLAGS)
@torch.no_grad()
def test_scores_equal_those_of_each_row_alone(name):
    """Sums of log-probabilities, and the most likely tokens, to 1e-4; and the library's loss."""
    model = model_of(name)
    found = score(model, requests(), batch_size=4)
    assert model.training
    model.eval()
    for request, one in zip(requests(), found, strict=True):
        targets, count = torch.tensor(request.targets), len(request.targets)
        logits = model(torch.tensor([request.inputs]))[0, -count:]
        log_probs = logits.log_softmax(-1)[torch.arange(count), targets]
        assert one.log_likelihood == pytest.approx(log_probs.sum().item(), abs=1e-4)
        assert one.is_greedy == torch.equal(logits.argmax(-1), targets)
        if len(request.context) == 1:
            loss = flagformer.AutoregressiveWrapper(model)(torch.tensor([[*request.context, *targets]]))
            assert one.log_likelihood == pytest.approx(-loss.item() * count, abs=1e-4)


def test_greedy_targets_are_recognised():
    model = model_of("rotary")
    new = flagformer.AutoregressiveWrapper(model).generate([5, 6], 4, temperature=0).tolist()
    right, wrong = Request((5, 6), tuple(new)), Request((5, 6), (*new[:3], (new[3] + 1) % 256))
    assert [one.is_greedy for one in score(model, [wrong, right])] == [False, True]


def test_equal_inputs_are_read_once():
    model, lengths = model_of("rotary"), []
    model.register_forward_hook(lambda module, given, output: lengths.append(tuple(given[0].shape)))
    many = [Request((1, 2, 3), (target,)) for target in range(30)]
    score(model, [*many, Request((1,), (2, 3, 9)), Request((4,), (5,))], batch_size=8)
    assert lengths == [(2, 3)]


def test_errors():
    with pytest.raises(ValueError, match=r"a request must have a context and targets, but request 1"):
        score(model_of("rotary"), [Request((1,), (2,)), Request((), (2,))])
    with pytest.raises(ValueError, match="`model` must be causal"):
        score(flagformer.build({"model": "encoder", "num_tokens": 9, **SIZES}), [])


def test_stop_ends_rows():
    """Each row by its own new tokens, the rest is padding; the tokens before are those of a plain call."""
    wrapper = flagformer.AutoregressiveWrapper(model_of("rotary"))
    prompts, calls = [[1, 2], [3], [4, 5, 6]], []
    want = wrapper.generate(prompts, 8, temperature=0)

    def stop(new):
        calls.append(new.shape)
        return new[:, -1] == want[torch.arange(3), torch.tensor([1, 5, 3])]

    found = wrapper.generate(prompts, 8, temperature=0, stop=stop)
    for row, full in zip(found.tolist(), want.tolist()):
        end = next(index for index in (1, 5, 3) if row[index + 1 :] == [0] * (7 - index))
        assert row[: end + 1] == full[: end + 1]
    assert len(calls) < 8


def test_tokens_of_a_model(tmp_path):
    """Bytes; the tokenizer of the trial's data; a tokenizer in the directory; one that is given."""
    path, run, model = tmp_path / "tokenizer.json", tmp_path / "run", tmp_path / "run" / "model"
    byte_tokenizer().save(str(path))
    model.mkdir(parents=True)
    assert isinstance(tokens_of(256, model, run), ByteTokens)
    with pytest.raises(ValueError, match="`--tokenizer` must be given: the model reads 300 tokens"):
        tokens_of(300, model, run)
    trial = {"id": "x", "train": {}, "data": {"source": "tokens", "tokenizer": str(path)}}
    (run / "trial.json").write_text(json.dumps(trial))
    found = tokens_of(300, model, run)
    assert isinstance(found, FileTokens)
    assert found.decode(found.encode("Bär\n", special=True)) == "Bär\n"
    assert found.encode("\n", special=False) == [found.prefix]
    with pytest.raises(ValueError, match="must be that of the model, but has the id"):
        tokens_of(100, model, run, path)
    with pytest.raises(ValueError, match=r"`tokenizer` must be a tokenizer\.json"):
        tokens_of(300, model, run, tmp_path / "nowhere")


def test_the_longest_row_is_read_whole():
    assert max(len(request.inputs) for request in requests()) == LENGTH


def test_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    model_of("rotary").save(tmp_path / "model")
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "model"), "--tasks", "lambada"])
    assert done.exit_code == 1
    assert "lm_eval, which is not installed: `pip install 'flagformer[eval]'`" in " ".join(
        done.stderr.split()
    )
