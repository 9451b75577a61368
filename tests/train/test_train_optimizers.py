"""Optimizers, groups by role, schedules, averages of weights, and penalties of the loss."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from tiny_trial import losses, outcome, tiny
from torch import nn
from torch.nn import functional as F

import flagformer
from flagformer.flags.import_paths import allowed_modules
from flagformer.lab.data import IGNORE
from flagformer.lab.objectives.masked_diffusion import MaskedDiffusion
from flagformer.lab.objectives.next_token import NextToken
from flagformer.lab.reference import choices, settings
from flagformer.lab.train.averages import averaged
from flagformer.lab.train.optimizers.groups import make_optimizer, parameter_groups
from flagformer.lab.train.optimizers.lion import LionOptimizer
from flagformer.lab.train.roles import ROLES, roles_of
from flagformer.lab.train.schedule import learning_rate
from flagformer.lab.train.settings import TrainConfig
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

OPTIMIZERS = ("muon", "lion", "adafactor", "schedulefree")
CHANGES = {
    **{name: {"optimizer": name} for name in OPTIMIZERS},
    "muon, groups": {"optimizer": "muon", "groups": {"embedding": {"lr": 1e-2, "weight_decay": 0.3}}},
    "ema": {"ema": 0.7},
    "penalties": {"label_smoothing": 0.1, "z_loss": 1e-2, "decay": "wsd"},
}


def own_decay(done):
    return (1 - done) ** 2


class Halving(torch.optim.Optimizer):
    """An optimizer of a user."""

    def __init__(self, groups, lr, factor=0.5):
        super().__init__(groups, {"lr": lr, "factor": factor})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["factor"])


@pytest.mark.parametrize("name", CHANGES)
def test_a_stopped_run_resumes_bit_by_bit(name, tmp_path):
    trial = tiny(train=CHANGES[name])
    whole = run_trial(trial, tmp_path / "whole")
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "stopped", killer(5))
    again = run_trial(trial, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert outcome(again) == outcome(whole)
    files = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]


def test_ids_of_trials_are_those_without_the_new_settings():
    content = tiny().settings()["train"]
    assert not set(TrainConfig.added) & set(content)
    assert set(TrainConfig.added) & set(tiny(train={"optimizer": "lion"}).settings()["train"]) == {
        "optimizer"
    }
    assert tiny(train={"optimizer": "adamw"}).id == tiny().id
    assert tiny(train={"optimizer": "lion"}).id != tiny().id


def test_roles_of_every_setting():
    """All parameters have one role; weights of linear layers in the stack are matrices."""
    for choice in choices():
        with torch.device("meta"):
            model = flagformer.build(settings(choice))
        found = {id(one.parameter): one.role for one in roles_of(model)}
        assert found.keys() == {id(p) for p in model.parameters()}, choice.name
        assert set(found.values()) <= set(ROLES)
        for module in model.attn_layers.modules():
            if isinstance(module, nn.Linear):
                assert found[id(module.weight)] == "matrix", choice.name


def test_roles_of_a_model():
    model = flagformer.build(
        {
            "dim": 16, "depth": 1, "heads": 2, "num_tokens": 7, "max_seq_len": 8, "num_memory_tokens": 2,
            "rel_pos_bias": True, "attn_num_mem_kv": 1, "norm_bias": True, "use_abs_pos_emb": True,
        }
    )  # fmt: skip
    found = {one.name: one.role for one in roles_of(model)}
    assert found["token_emb.weight"] == found["memory.tokens"] == "embedding"
    assert found["attn_layers.sublayers.0.fn.source.projection.to_qkv.weight"] == "matrix"
    assert found["attn_layers.sublayers.0.in_norm.bias"] == "norm"
    assert found["attn_layers.sublayers.1.fn.w_in.bias"] == "bias"
    assert found["attn_layers.position_bias.table"] == "vector"
    assert found["attn_layers.sublayers.0.fn.prefix_kv.0.k"] == "vector"
    assert found["head.project.weight"] == "head"


def toy():
    torch.manual_seed(1)
    flags = {"dim": 16, "depth": 1, "heads": 2, "num_tokens": 7, "max_seq_len": 8}
    return flagformer.build(flags)


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def test_muon_is_that_of_torch_for_matrices_and_adamw_for_all_others():
    config = TrainConfig(optimizer={"name": "muon", "momentum": 0.8}, lr=1e-2)
    one, other = toy(), toy()
    joined = make_optimizer(one, config)
    roles = {item.name: item.role for item in roles_of(other)}
    named = dict(other.named_parameters())
    matrices = [p for name, p in named.items() if roles[name] == "matrix"]
    tables = [p for name, p in named.items() if roles[name] != "matrix" and p.ndim > 1]
    vectors = [p for p in named.values() if p.ndim < 2]
    apart = [
        torch.optim.Muon(matrices, lr=1e-2, momentum=0.8, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(tables, lr=1e-2, betas=config.betas, weight_decay=0.1, fused=True),
        torch.optim.AdamW(vectors, lr=1e-2, betas=config.betas, weight_decay=0.0, fused=True),
    ]
    assert len(matrices) == 4
    for seed in range(3):
        gradients(one, seed)
        gradients(other, seed)
        joined.step()
        for optimizer in apart:
            optimizer.step()
    for mine, theirs in zip(one.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)


def test_lion_follows_its_definition():
    """Algorithm 2 of arXiv:2302.06675."""
    parameter = nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)).double())
    want, momentum = parameter.detach().clone(), torch.zeros(5).double()
    optimizer = LionOptimizer([{"params": [parameter], "weight_decay": 0.2}], 0.1, (0.6, 0.9))
    for seed in range(4):
        parameter.grad = torch.randn(5, generator=torch.Generator().manual_seed(seed)).double()
        optimizer.step()
        direction = torch.sign(0.6 * momentum + 0.4 * parameter.grad)
        want = want - 0.1 * (direction + 0.2 * want)
        momentum = 0.9 * momentum + 0.1 * parameter.grad
    torch.testing.assert_close(parameter.detach(), want, rtol=0, atol=1e-14)


def test_groups_have_rates_and_weight_decay_of_their_own():
    groups = {"embedding": {"lr": 4e-3, "weight_decay": 0.0}, "norm": {"weight_decay": 0.5}}
    config = TrainConfig(lr=2e-3, groups=groups)
    model = toy()
    found = parameter_groups(model, config)
    by_role = {}
    for one in roles_of(model):
        group = next(g for g in found if any(p is one.parameter for p in g["params"]))
        by_role.setdefault(one.role, []).append((group.get("scale", 1.0), group["weight_decay"]))
    assert set(by_role["embedding"]) == {(2.0, 0.0)}
    assert set(by_role["norm"]) == {(1.0, 0.5)}
    assert set(by_role["matrix"]) == set(by_role["head"]) == {(1.0, 0.1)}
    assert set(by_role["bias"]) == {(1.0, 0.0)}


@pytest.mark.parametrize(
    ("decay", "step", "want"),
    [
        ("wsd", 11, 1.0),
        ("wsd", 80, 1.0),
        ("wsd", 85, 0.5 + 0.5 * (1 - math.sqrt(5 / 20))),
        ("wsd", 100, 0.5),
        ("inverse_sqrt", 40, math.sqrt(10 / 40)),
        (f"{__name__}:own_decay", 55, 0.5 + 0.5 * 0.25),
    ],
)
def test_decays(decay, step, want):
    with allowed_modules([__name__]):
        config = TrainConfig(steps=100, warmup=10, lr=1.0, lr_end=0.5, decay=decay)
        assert learning_rate(step, config) == pytest.approx(want, abs=1e-12)
    assert learning_rate(5, config) == 0.5


def test_the_rate_of_schedule_free_training_stays():
    config = TrainConfig(steps=100, warmup=10, lr=1.0, optimizer="schedulefree")
    assert [learning_rate(step, config) for step in (5, 10, 50, 100)] == [0.5, 1.0, 1.0, 1.0]


def test_an_optimizer_of_the_user(tmp_path):
    with allowed_modules([__name__]):
        own = {"name": f"{__name__}:Halving", "factor": 0.25}
        trial = tiny(train={"optimizer": own, "steps": 2, "warmup": 0, "decay": "constant", "lr": 0.5})
        run_trial(trial, tmp_path)
        start = trial_start(trial)
        saved = flagformer.load(tmp_path / "model").state_dict()
        for name, value in start.items():
            torch.testing.assert_close(saved[name], value * (1 - 0.5 * 0.25) ** 2, rtol=1e-6, atol=1e-7)
        with pytest.raises(ValueError, match=r"`optimizer` is .*:Halving \(.*\.py:\d+\): TypeError"):
            make_optimizer(toy(), TrainConfig(optimizer={**own, "wrong": 1}))


class Breaking(Halving):
    """An optimizer of a user that fails in its step."""

    @torch.no_grad()
    def step(self, closure=None):
        raise KeyError("no such moment")


def test_an_error_in_a_step_names_the_class(tmp_path):
    with allowed_modules([__name__]):
        trial = tiny(train={"optimizer": f"{__name__}:Breaking"})
        with pytest.raises(
            ValueError, match=r"`optimizer` is .*:Breaking \(.*\.py:\d+\): KeyError: 'no such"
        ):
            run_trial(trial, tmp_path)


def trial_start(trial):
    torch.manual_seed(trial.weights_seed)
    return trial.build().state_dict()


def test_the_average_of_weights_is_evaluated_and_saved(tmp_path):
    """Training does not depend on it."""
    run_trial(tiny(), tmp_path / "plain")
    seen = []
    trial = tiny(train={"ema": 0.7})
    result = run_trial(trial, tmp_path / "ema", seen.append)
    plain = [line[:2] for line in losses(tmp_path / "plain")]
    assert [line[:2] for line in losses(tmp_path / "ema")] == plain
    assert [line[2] for line in losses(tmp_path / "ema")] != [line[2] for line in losses(tmp_path / "plain")]
    model = flagformer.load(tmp_path / "ema" / "model").eval()
    data = NextToken().batch(trial.source, "test", 0, 0, 4, 12)
    want = NextToken().losses(model(data[0]), data[-1])
    assert want.isfinite().all()
    assert (
        result["evaluation"][0]["nats"]
        != json.loads((tmp_path / "plain" / "result.json").read_text())["evaluation"][0]["nats"]
    )


def test_averages_are_those_of_the_definition():
    model, config = toy(), TrainConfig(ema=0.75, lr=1e-2)
    optimizer = make_optimizer(model, config)
    from flagformer.lab.train.averages import update_average

    want = None
    for seed in range(4):
        gradients(model, seed)
        optimizer.step()
        update_average(optimizer, config.ema)
        now = [p.detach().clone() for p in model.parameters()]
        want = now if want is None else [0.75 * a + 0.25 * b for a, b in zip(want, now)]
    with averaged(optimizer):
        got = [p.detach().clone() for p in model.parameters()]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # fp32, values of magnitude 1
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), now))


def test_schedule_free_weights_return_bit_by_bit():
    model = toy()
    optimizer = make_optimizer(model, TrainConfig(optimizer="schedulefree", lr=1e-2))
    for seed in range(3):
        gradients(model, seed)
        optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    with averaged(optimizer):
        assert not all(torch.equal(p, value) for p, value in zip(model.parameters(), before))
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before))
    gradients(model, 9)
    optimizer.step()


def test_penalties_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=generator).double()
    targets = torch.tensor([[1, IGNORE, 0, 4], [2, 2, IGNORE, 3]])
    found = NextToken().losses(logits, targets) + NextToken().penalties(logits, targets, 0.2, 0.3)
    smoothed = F.cross_entropy(
        logits.reshape(-1, 5), targets.flatten(), ignore_index=IGNORE, reduction="none", label_smoothing=0.2
    )
    want = torch.zeros(2, 4).double()
    for row in range(2):
        for place in range(4):
            if targets[row, place] != IGNORE:
                total = sum(math.exp(value) for value in logits[row, place].tolist())
                want[row, place] = smoothed.view(2, 4)[row, place] + 0.3 * math.log(total) ** 2
    torch.testing.assert_close(found.double(), want, rtol=0, atol=2e-6)
    diffusion = MaskedDiffusion()
    weights = torch.tensor([[4 / 3], [4 / 3]])
    got = diffusion.penalties(logits, targets, 0.2, 0.3)
    torch.testing.assert_close(got, NextToken().penalties(logits, targets, 0.2, 0.3) * weights)


def test_a_short_run_has_a_short_warmup():
    assert TrainConfig.model_validate({"steps": 10}).warmup == 10
    assert TrainConfig.model_validate({"steps": 100}).warmup == 40
    with pytest.raises(ValidationError, match="`warmup` must be at most `steps` = 10, but is 20"):
        TrainConfig.model_validate({"steps": 10, "warmup": 20})


def test_blocks_of_json_are_read():
    text = '{"optimizer": {"name": "lion", "betas": [0.8, 0.9]}, "groups": {"norm": {"lr": 0.1}}, "steps": 7}'
    found = TrainConfig.model_validate_json(text, strict=True)
    assert found.optimizer.betas == (0.8, 0.9)
    assert found.groups["norm"].lr == 0.1
    assert TrainConfig.model_validate_json(found.model_dump_json(), strict=True) == found


WRONG = [
    ({"optimizer": "sgdd"}, "sgdd"),
    ({"optimizer": {"name": "lion"}, "betas": (0.5, 0.5)}, "`betas` are not read by `optimizer: lion`"),
    (
        {"optimizer": "schedulefree", "decay": "linear"},
        "`decay` must be left out with `optimizer",
    ),
    ({"optimizer": "schedulefree", "ema": 0.5}, "`ema` must be left out with `optimizer: schedulefree`"),
    (
        {"decay": "cosin"},
        "`decay` must be one of cosine, linear, constant, wsd, inverse_sqrt or an",
    ),
    ({"decay": "wsd", "steps": 45}, "`warmup` must be at most 36, the step after which `decay: wsd` falls"),
    ({"decay_share": 0.5}, "`decay_share` needs `decay: wsd`, but `decay` is 'cosine'"),
    ({"groups": {"head": {"lr": -1}}}, "greater than 0"),
    ({"groups": {"heads": {}}}, "'embedding', 'matrix', 'head', 'norm', 'bias' or 'vector'"),
    ({"optimizer": "no_such_module:Thing"}, "optimizer"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(changes)
    assert words in str(caught.value)


def test_penalties_need_a_loss_of_tokens():
    trial = tiny(
        flags={"model": "continuous", "causal": True},
        data={"source": "sines", "seq_len": 12},
        train={"z_loss": 1e-3},
        evaluate={"seq_lens": [12], "batches": 1},
    )
    with pytest.raises(ValueError, match=r"`train.z_loss` needs a loss of tokens, but `objective: reg"):
        trial.check()


def test_a_role_without_a_parameter_is_refused():
    trial = tiny(flags={"tie_embedding": True}, train={"groups": {"head": {"lr": 1e-2}}})
    with pytest.raises(ValueError, match=r"`train.groups.head` has no effect.*it has embedding, matrix"):
        trial.check()


def test_sharded_matrices_are_refused(tmp_path):
    from flagformer.lab.train.trial import _refuse_sharded

    ranks = SimpleNamespace(shards_parameters=True)
    with pytest.raises(ValueError, match="`parallel` must be ddp with `optimizer: muon`"):
        _refuse_sharded(TrainConfig(optimizer="muon"), ranks)
    _refuse_sharded(TrainConfig(optimizer="lion"), ranks)


def test_a_compiled_model_is_trained(tmp_path, monkeypatch):
    """The graph gives the losses of eager execution up to rounding; here without generated code."""
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))
    changes = {"steps": 3, "eval_every": 0}
    flags = {"attn_dropout": 0.0, "ff_dropout": 0.0}
    run_trial(tiny(train=changes, flags=flags), tmp_path / "eager")
    run_trial(tiny(train={**changes, "compile": True}, flags=flags), tmp_path / "compiled")
    eager, compiled = (losses(tmp_path / name) for name in ("eager", "compiled"))
    assert [line[1] for line in compiled] == pytest.approx([line[1] for line in eager], abs=1e-5)
