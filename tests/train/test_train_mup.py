"""muP: the rules of parameters, the coordinate check, and trials that train with it."""

import json

import numpy as np
import pytest
import torch
from tiny_trial import outcome, tiny

import flagformer
from commit_sample import part_of
from flagformer.lab.study.report.coordinates import coordinate_figure, verdict
from flagformer.lab.study.statistics import mean_interval
from flagformer.lab.train.config import Trial
from flagformer.lab.train.coordinates import MARGIN, Coordinates, coordinates
from flagformer.lab.train.mup.settings import Mup
from flagformer.lab.train.optimizers.groups import make_optimizer, parameter_groups
from flagformer.lab.train.roles import roles_of
from flagformer.lab.train.settings import TrainConfig
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

BASE = {"base": {"dim": 16, "heads": 2}}
WIDE = {"dim": 64, "heads": 8, "attn_dim_head": 8, "depth": 2, "ff_dropout": 0.0, "attn_dropout": 0.0}


def wide(flags=None, base=None):
    return tiny(flags={**WIDE, **(flags or {})}, train={"mup": {"base": base or BASE["base"]}})


def small(**flags):
    """A trial for the coordinate check: widths are multiples of 16."""
    content = {
        "flags": {"dim": 64, "depth": 2, "heads": 4, "attn_dim_head": 16, **flags},
        "data": {"source": "copy", "symbols": 16, "seq_len": 12},
        "train": {"batch_size": 8, "lr": 0.002, "device": "cpu"},
    }
    return Trial.model_validate(content)


def test_rules_by_role():
    """Four times the width: table 3 of arXiv:2203.03466, relative to the base."""
    found = wide().mup_rules()
    layer = "attn_layers.sublayers.0."
    wanted = {
        "token_emb.weight": ("embedding", 2.0, 1.0),
        f"{layer}fn.source.projection.to_qkv.weight": ("matrix", 1.0, 0.25),
        "attn_layers.sublayers.1.fn.w_out.weight": ("matrix", 1.0, 0.25),
        "attn_layers.sublayers.1.fn.w_in.bias": ("vector", 2.0, 1.0),
        f"{layer}in_norm.weight": ("vector", 1.0, 1.0),
        "head.project.weight": ("output", 0.5, 0.25),
    }
    assert {name: tuple(found[name]) for name in wanted} == wanted


def test_initial_deviations():
    """Embeddings have the deviation of the base, matrices 1/sqrt(fan-in), the head 1/fan-in."""
    torch.manual_seed(0)
    model = wide({"dim": 256, "heads": 32}).build()
    weights = dict(model.named_parameters())
    base, width = 16, 256
    wanted = {
        "token_emb.weight": base**-0.5,
        "attn_layers.sublayers.0.fn.source.projection.to_qkv.weight": (3 * width) ** -0.5,
        "head.project.weight": (3 * base) ** -0.5 * base / width,
    }
    for name, deviation in wanted.items():
        assert weights[name].std().item() == pytest.approx(deviation, rel=0.1), name


def test_multipliers_are_flags():
    flags = wide(
        {"attn_dim_head": 32, "tie_embedding": True},
        {"dim": 16, "heads": 8, "attn_dim_head": 8, "depth": 1},
    ).model_flags
    assert flags["attn_scale"] == pytest.approx(8**0.5 / 32)
    assert flags["tie_embedding_scale"] == pytest.approx(16**0.5 / 64)
    assert flags["residual_scale"] == pytest.approx(0.5**0.5)


def test_depth_lowers_the_rates_of_layers_only():
    found = wide({"depth": 4}, {"dim": 64, "heads": 8, "depth": 1}).mup_rules()
    rates = {name: rule.rate for name, rule in found.items()}
    assert {rate for name, rate in rates.items() if ".sublayers." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".sublayers." not in name} == {1.0}


def test_weight_decay_times_rate_is_kept():
    trial = wide()
    groups = make_optimizer(trial.build(), trial.train, trial.mup_rules()).param_groups
    products = {group.get("scale", 1.0) * group["weight_decay"] for group in groups}
    assert products == {0.0, trial.train.weight_decay}
    assert {group.get("scale", 1.0) for group in groups} == {1.0, 0.25}


def test_groups_are_those_of_the_base_model():
    """The rate of a role is that of the base model; muP has its factor on top of it."""
    base = wide()
    train = {**base.train.model_dump(), "groups": {"matrix": {"lr": 3 * base.train.lr, "weight_decay": 0.2}}}
    trial = base.model_copy(update={"train": TrainConfig.model_validate(train)})
    model = trial.build()
    matrices = {id(one.parameter) for one in roles_of(model) if one.role == "matrix"}
    groups = parameter_groups(model, trial.train, trial.mup_rules())
    found = {
        (round(group["scale"], 9), group["weight_decay"])
        for group in groups
        if {id(parameter) for parameter in group["params"]} & matrices
    }
    assert found == {(0.75, 0.8)}


@pytest.mark.parametrize("optimizer", ["muon", "lion", "adafactor", "schedulefree"])
def test_rates_are_those_of_adamw(optimizer):
    with pytest.raises(ValueError, match=f"`mup` must be left out with `optimizer: {optimizer}`"):
        TrainConfig.model_validate({"optimizer": optimizer, "mup": BASE})


def test_at_the_base_nothing_changes(tmp_path):
    one, two = tiny(), tiny(train={"mup": {"base": {"dim": 16, "depth": 1}}})
    first, second = run_trial(one, tmp_path / "a"), run_trial(two, tmp_path / "b")
    assert "mup" not in one.settings()["train"]
    assert one.model_flags == two.model_flags
    assert first["evaluation"] == second["evaluation"]
    assert first["train_loss"] == second["train_loss"]


def test_resumes_to_equal_bits_and_saves_its_multipliers(tmp_path):
    trial = wide(
        {"attn_dim_head": 16, "depth": 1, "tie_embedding": True}, {**BASE["base"], "attn_dim_head": 8}
    )
    whole = run_trial(trial, tmp_path / "whole")
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "cut", killer(5))
    assert outcome(run_trial(trial, tmp_path / "cut")) == outcome(whole)
    assert whole["mup"]["base"] == {**BASE["base"], "attn_dim_head": 8}
    assert set(whole["mup"]["flags"]) == {"attn_scale", "tie_embedding_scale"}
    saved = json.loads((tmp_path / "whole" / "model" / "flags.json").read_text())
    assert whole["mup"]["flags"].items() <= (saved.get("flags") or saved).items()
    model, ids = flagformer.load(tmp_path / "whole" / "model").eval(), torch.arange(8)[None]
    plain = flagformer.build(trial.model_flags).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(ids), plain(ids))


KINDS = ("embedding", "attention output", "feedforward output", "logits")


CHECK = {"widths": (64, 128, 256), "seeds": range(5), "steps": 3}


def test_coordinates_are_flat_with_mup_alone():
    """The bound: a slope nearer to 0 than to 1/2, the next exponent, by the interval over seeds. Logits of
    models as narrow as these shrink a little (docs/how-to-mup.md)."""
    with_mup = coordinates(small(), mup=True, **CHECK)
    assert [verdict(with_mup, kind, MARGIN) for kind in KINDS[:3]] == ["flat"] * 3
    assert mean_interval(list(with_mup.slopes("logits"))).high < MARGIN
    without = coordinates(small(), mup=False, **CHECK)
    assert [verdict(without, kind, MARGIN) for kind in KINDS] == ["flat", "grows", "grows", "grows"]


COMPOSITES = {
    "gated": {"attn_kv_heads": 1, "attn_qk_rmsnorm": True, "rotary_pos_emb": True, "ff_glu": True},
    "experts": {"ff_moe": True, "moe_num_experts": 2, "moe_top_k": 1},
    "tied": {"tie_embedding": True},
}


@pytest.mark.parametrize("name", part_of(COMPOSITES, 3))
def test_composite_models_are_flat(name):
    grow = "attn_dim_head" if name == "tied" else "heads"
    found = coordinates(small(**COMPOSITES[name]), mup=True, grow=grow, **CHECK)
    assert [verdict(found, kind, MARGIN) for kind in KINDS[:3]] == ["flat"] * 3
    assert mean_interval(list(found.slopes("logits"))).high < MARGIN


def test_slopes_and_figure():
    widths = (32, 64, 128)
    changes = np.array([[1.0, 2.0, 4.0], [1.0, 4.0, 16.0]])
    found = Coordinates(widths, {"logits": changes})
    assert found.slopes("logits").tolist() == pytest.approx([1.0, 2.0])
    assert verdict(found, "logits", MARGIN) == "not resolved"
    drawn = coordinate_figure({"muP": found})
    assert "<svg" in drawn
    assert "logits, muP" in drawn


@pytest.mark.parametrize(
    ("flags", "base", "message"),
    [
        ({"use_scalenorm": True}, None, "has no rule for .* of ScaleNorm"),
        ({"scaled_sinu_pos_emb": True}, None, "of Sinusoidal"),
        ({"mixer": "short_convolution"}, None, "`mixer` and `train.mup`"),
        ({"embedding_scale": True}, None, "`embedding_scale` must be a number"),
        ({"num_memory_tokens": 2}, None, "`num_memory_tokens` and `train.mup`"),
        ({"pre_norm": False}, {"dim": 16, "depth": 1}, "`pre_norm=False` and `mup.base.depth`"),
        ({"model": "prefix_decoder"}, None, "`train.mup` must be left out with `model: prefix_decoder`"),
    ],
)
def test_refused_with_the_reason(flags, base, message):
    with pytest.raises(ValueError, match=message):
        wide(flags, base).check()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"heads": 2}, "must hold `dim`"),
        ({"dim": 0}, "`mup.base.dim` must be at least 1, but is 0"),
        ({"dim": 8, "ff_glu": 1}, "must hold sizes"),
    ],
)
def test_bad_bases(base, message):
    with pytest.raises(ValueError, match=message):
        Mup(base=base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (32,)}, "`widths` must be at least two"),
        ({"widths": (32, 40)}, "stays a whole number, but holds 40"),
        ({"seeds": (1,)}, "`seeds` must be at least two"),
        ({"grow": "depth"}, "`grow` must be heads or attn_dim_head"),
    ],
)
def test_bad_coordinate_checks(options, message):
    with pytest.raises(ValueError, match=message):
        coordinates(small(), **{"widths": (32, 64), "mup": True, **options})
