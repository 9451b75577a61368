"""Components by import path: built, saved by their path, and loaded only from allowed modules."""

import json
import sys

import pytest
import torch

import flagformer
from flagformer import FlagError
from flagformer.flags import allowed_modules

FLAGS = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SOURCE = """\
import torch
from torch import nn

level = 3


class MyNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


class NoNorm:
    pass


def bent(x):
    return x.tanh()
"""
PATH = "mylab.norms:MyNorm"


@pytest.fixture(autouse=True)
def mylab(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    (home / "mylab").mkdir()
    (home / "mylab" / "norms.py").write_text(SOURCE)
    (home / "mylab" / "broken.py").write_text("raise OSError('no licence')\n")
    monkeypatch.syspath_prepend(home)
    yield home
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def ids():
    return torch.arange(12).view(2, 6) % 11


VALUES = {
    "a class": {"norm": PATH},
    "with parameters": {"norm": {"class": PATH, "eps": 0.5}},
    "by layer": {"activation": ["mylab.norms:bent", None]},
    "a class by layer": {
        "activation": [{"class": "torch.nn:LeakyReLU", "negative_slope": 0.5}, "torch.nn:ELU"]
    },
    "several in a layer": {"branch": [["torch.nn:Identity"], [], [], []]},
}


@pytest.mark.parametrize("name", VALUES)
def test_saved_and_loaded(name, tmp_path):
    model = flagformer.build({**FLAGS, **VALUES[name]}).eval()
    model.save(tmp_path)
    assert VALUES[name].items() <= json.loads((tmp_path / "flags.json").read_text())["flags"].items()
    back = flagformer.load(tmp_path, allow=["mylab", "torch.nn"]).eval()
    assert torch.equal(back(ids()), model(ids()))
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]


def test_parameters_reach_the_class():
    model = flagformer.build({**FLAGS, **VALUES["with parameters"]})
    assert model.attn_layers.final_norm.eps == 0.5
    assert "MyNorm(eps=0.5)" in model.attn_layers.explain()


def test_encoder_decoders_take_paths():
    halves = {
        f"{half}{name}": FLAGS[name] for half in ("enc_", "dec_") for name in ("num_tokens", "max_seq_len")
    }
    halves |= {"enc_depth": 1, "dec_depth": 1, "enc_norm": PATH}
    model = flagformer.build({"model": "xtransformer", "dim": 16, **halves})
    assert type(model.encoder.attn_layers.final_norm).__name__ == "MyNorm"
    with pytest.raises(FlagError, match=r"`dec_norm` must be a Spec.* mylab.norms has no MyNom"):
        flagformer.build({"model": "xtransformer", "dim": 16, **halves, "dec_norm": "mylab.norms:MyNom"})


@pytest.mark.parametrize("allow", [[], ["mylab.other"], ["my"], ["torch"]])
def test_load_refuses_other_modules_without_importing_them(allow, tmp_path):
    flagformer.build({**FLAGS, "norm": PATH}).save(tmp_path)
    del sys.modules["mylab.norms"]
    with pytest.raises(ValueError, match=r"whose module is not allowed: .* `allow=\['mylab'\]`"):
        flagformer.load(tmp_path, allow=allow)
    assert "mylab.norms" not in sys.modules


def test_allow_is_a_list(tmp_path):
    flagformer.build(FLAGS).save(tmp_path)
    with pytest.raises(ValueError, match="`allow` must be a list of module names"):
        flagformer.load(tmp_path, allow="mylab")


def test_a_load_ends_its_permission(tmp_path):
    flagformer.build(FLAGS).save(tmp_path)
    with allowed_modules([]):
        flagformer.load(tmp_path, allow=["mylab"])
        with pytest.raises(ValueError, match="not allowed"):
            flagformer.build({**FLAGS, "norm": PATH})
    flagformer.build({**FLAGS, "norm": PATH})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("layernorm", "is 'layernorm', which is not an import path `package.module:Class`"),
        ("mylab.norms.MyNorm", "which is not an import path"),
        ("mylab.norms:MyNorm()", "which is not an import path"),
        ({"eps": 1}, "is {'eps': 1}, which has no `class`, an import path"),
        ({"class": 3}, "which has no `class`"),
        ("mylib.norms:MyNorm", "cannot be imported: ModuleNotFoundError: No module named 'mylib'"),
        ("mylab.broken:MyNorm", "cannot be imported: OSError: no licence ("),
        ("mylab.norms:MyNom", "mylab.norms has no MyNom; did you mean `MyNorm`"),
        ("mylab.norms:level", "is 3, not a class or a function"),
        ("mylab.norms:NoNorm", "NoNorm is not an nn.Module ("),
        ("mylab.norms:bent", None),
        ({"class": "mylab.norms:bent", "eps": 1}, "is a function, which takes no parameters such as `eps`"),
        ({"class": PATH, "epsi": 1}, "MyNorm has no parameter 'epsi'; did you mean `eps`"),
        ({"class": PATH, "width": 1}, "MyNorm has no parameter 'width'; it has eps"),
    ],
)
def test_mistakes_are_named(value, text):
    if text is None:  # the contract of a norm is a single call
        flagformer.build({**FLAGS, "norm": value})
        return
    with pytest.raises(FlagError) as error:
        flagformer.build({**FLAGS, "norm": value})
    (finding,) = error.value.findings
    assert finding.flag == "norm"
    assert text in finding.message


def test_a_mistake_in_a_list_names_its_layer():
    with pytest.raises(FlagError, match=r"`activation` at layer 1 must be .* mylab.norms has no bend"):
        flagformer.build({**FLAGS, "activation": [None, "mylab.norms:bend"]})


def test_a_class_that_is_passed_itself_is_saved_by_no_path(tmp_path):
    from mylab.norms import MyNorm

    with pytest.raises(ValueError, match="name a class by its import path"):
        flagformer.build({**FLAGS, "norm": MyNorm}).save(tmp_path)


def test_the_audit_passes():
    report = flagformer.audit(flagformer.build({**FLAGS, "norm": PATH}))
    assert report.passed
