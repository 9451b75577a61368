"""lm-evaluation-harness: `flagformer eval`; equal scores by our adapter, HFLM and the library."""

import json

import pytest
import torch
from lm_eval_models import CHOICES, END, FLAGS, LENGTH, byte_tokenizer, model_of, write_tasks
from typer.testing import CliRunner

from flagformer.lab.cli.main import app
from flagformer.lab.lm_eval.scoring import Request, score
from flagformer.lab.lm_eval.tokens import ByteTokens, PretrainedTokens, tokens_of

REASON = "lm_eval is not installed: `make integrations` installs it"
lm_eval = pytest.importorskip("lm_eval", reason=REASON)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from flagformer.interop.hugging_face import FlagformerForCausalLM  # noqa: E402
from flagformer.lab.lm_eval import FlagformerLM  # noqa: E402


def instances(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=index) for index, one in enumerate(arguments)
    ]


def tokenizer():
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="</s>", pad_token="</s>")


PAIRS = [(context, answer) for context, answers in CHOICES for answer in answers]
PAIRS = [
    *PAIRS,
    ("", "empty"),
    ("long " * 9, "word"),
    ("space ", "x"),
    PAIRS[0],
    ("a", "b" * LENGTH),
    ("é", "è"),
]
PAIRS += [("é", "\n\n"), ("", "b")]
TEXTS = [("short",), ("word " * 30,), ("x" * LENGTH,), ("y" * (LENGTH + 1),), ("z",)]
PROMPTS = [
    ("one", {"until": ["e", "\n"], "max_gen_toks": 8}),
    ("two two two", {"until": "\n", "max_gen_toks": 8, "do_sample": False}),
    ("three " * 8, {"until": ["e", "\n"], "max_gen_toks": 8}),
    ("four", {"until": [], "max_gen_toks": 5, "temperature": 0.0}),
]


@pytest.mark.parametrize("name", FLAGS)
def test_our_adapter_equals_hflm(name):
    """20 log-likelihoods, 5 rolling ones and 4 generations, to 1e-4 and the same text."""
    model = model_of(name, num_tokens=END + 1)
    wrapped = FlagformerForCausalLM.of(model)
    theirs = HFLM(pretrained=wrapped, tokenizer=tokenizer(), batch_size=4, add_bos_token=False)
    ours = FlagformerLM(model, PretrainedTokens(tokenizer(), "bytes"), batch_size=3)
    assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id)
    pairs = instances("loglikelihood", *PAIRS)
    for one, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]
    rolling = instances("loglikelihood_rolling", *TEXTS)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling), abs=1e-4
    )
    prompts = instances("generate_until", *PROMPTS)
    texts = ours.generate_until(prompts)
    assert texts == theirs.generate_until(prompts)
    assert "e" not in texts[0] + texts[2]


def test_rolling_windows_score_each_token_once():
    """The sum over the windows of the docstring, each read by itself."""
    model, text = model_of("rotary"), "rolling windows " * 5
    ids = [10, *text.encode()]
    wanted = []
    for start in range(0, len(text), LENGTH):
        end = min(start + LENGTH, len(text))
        first = max(0, end - LENGTH)
        wanted.append(Request(tuple(ids[first : start + 1]), tuple(ids[start + 1 : end + 1])))
    lm = FlagformerLM(model, ByteTokens())
    [found] = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    assert found == pytest.approx(sum(one.log_likelihood for one in score(model, wanted)), abs=1e-4)
    assert sum(len(one.targets) for one in wanted) == len(text)


def test_scores_are_remembered():
    lm, calls = FlagformerLM(model_of("rotary"), ByteTokens()), []
    lm.model.register_forward_hook(lambda *_: calls.append(None))
    pairs = instances("loglikelihood", ("a", "bc"), ("a", "de"))
    assert lm.loglikelihood(pairs) == lm.loglikelihood(pairs[::-1])[::-1]
    assert len(calls) == 1


def test_sampling_and_refused_settings():
    lm = FlagformerLM(model_of("rotary"), ByteTokens())

    def generated(**settings):
        return lm.generate_until(instances("generate_until", ("a", {"max_gen_toks": 4, **settings})))[0]

    torch.manual_seed(0)
    drawn = {generated(do_sample=True, top_k=3) for _ in range(5)}
    assert len(drawn) > 1
    assert generated(temperature=0.7, top_p=1e-6) == generated()
    for text, settings in {
        "`generation_kwargs` must be of max_gen_toks": {"num_beams": 4},
        "has both": {"do_sample": True, "top_k": 3, "top_p": 0.5},
        f"`max_gen_toks` must be below {LENGTH}": {"max_gen_toks": LENGTH},
    }.items():
        with pytest.raises(ValueError, match=text):
            generated(**settings)
    with pytest.raises(ValueError, match="a continuation must have from 1 to 32 tokens"):
        lm.loglikelihood(instances("loglikelihood", ("a", "b" * 33)))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of subprocesses
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", tmp_path / "cache")
    return tmp_path / "tasks"


def call(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_eval_of_a_trial(tasks, tmp_path):
    """Three kinds of tasks on a model of bytes: the numbers are those of the library's own scores."""
    run = tmp_path / "study" / "trials" / "a-0"
    run.mkdir(parents=True)
    (run / "trial.json").write_text(json.dumps({"id": "a-0", "train": {}, "data": {"source": "stdlib"}}))
    model = model_of("rotary")
    model.save(run / "model")
    done = call(run, "--tasks", "own_choices,own_texts,own_prompts", "--tasks-dir", tasks)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "study" / "trials" / "a-0.eval.json").read_text())
    assert (found["tokenizer"], found["prefix"], found["max_length"]) == ("bytes", 10, LENGTH)
    assert {name: one["effective"] for name, one in found["n-samples"].items()} == dict.fromkeys(
        found["tasks"], 5
    )
    right = []
    for question, answers in [*CHOICES, CHOICES[0]]:
        requests = [Request(tuple(question.encode()), tuple(answer.encode())) for answer in answers]
        values = [one.log_likelihood for one in score(model, requests)]
        right.append(values.index(max(values)) == 1)
    assert found["results"]["own_choices"]["acc,none"] == pytest.approx(sum(right) / 5)
    lm, texts = FlagformerLM(model, ByteTokens()), [("word " * count,) for count in (2, 9, 3, 20, 1)]
    total = sum(lm.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)))
    bits = -total / sum(len(text) for [text] in texts) / torch.tensor(2.0).log().item()
    assert found["results"]["own_texts"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-4)
    assert "|own_choices|" in done.output.replace(" ", "")
    limited = call(
        run, "--tasks", "own_texts", "--tasks-dir", tasks, "--limit", 2, "--out", tmp_path / "x.json"
    )
    assert limited.exit_code == 0, limited.output
    assert json.loads((tmp_path / "x.json").read_text())["n-samples"]["own_texts"]["effective"] == 2
    refused = {
        "is the directory of a study": (tmp_path / "study", "--tasks", "own_texts"),
        "`--tasks-dir` must be a directory": (run, "--tasks", "own_texts", "--tasks-dir", tmp_path / "no"),
        "`--tasks` must name at least one task": (run, "--tasks", ","),
        "`--device` must be a device of torch": (run, "--tasks", "own_texts", "--device", "cuda:99"),
    }
    for text, arguments in refused.items():
        done = call(*arguments)
        assert done.exit_code == 2
        assert text in " ".join(done.stderr.split())


def test_eval_of_directories_of_transformers(tasks, tmp_path):
    """A published model and a FlagformerForCausalLM, each with its tokenizer, have the results of HFLM."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=END + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, initializer_range=0.5,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    flagged = FlagformerForCausalLM.of(model_of("absolute", num_tokens=END + 1))
    for name, model in {"llama": llama, "flagged": flagged}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        done = call(tmp_path / name, "--tasks", "own_choices,own_texts", "--tasks-dir", tasks)
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / f"{name}.eval.json").read_text())
        manager = lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False)
        lm = HFLM(pretrained=model, tokenizer=tokenizer(), add_bos_token=False, batch_size=4)
        want = lm_eval.simple_evaluate(lm, tasks=["own_choices", "own_texts"], task_manager=manager)
        for task, metric in {"own_choices": "acc,none", "own_texts": "bits_per_byte,none"}.items():
            assert found["results"][task][metric] == pytest.approx(want["results"][task][metric], abs=1e-4)
    assert isinstance(tokens_of(END + 1, tmp_path / "llama", tmp_path), PretrainedTokens)
