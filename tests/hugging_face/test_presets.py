"""Presets of published models: sizes, numbers of parameters, and studies of them."""

import pytest
import torch

import flagformer
from flagformer.interop.hugging_face import families
from flagformer.interop.hugging_face.sizes import SIZES
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.costs import check_variants
from flagformer.lab.study.file import load_study
from flagformer.presets import preset

DEPTHS = ("depth", "enc_depth", "dec_depth")


def params(flags):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in flagformer.build(flags).parameters())


def params_of(flags):
    """The number of parameters, of equal layers by those of one layer and of two."""
    depth = next((flags[name] for name in DEPTHS if name in flags), 0)
    if depth <= 12 or any(isinstance(value, tuple) for value in flags.values()):
        return params(flags)
    one, two = (params({**flags, **{name: n for name in DEPTHS if name in flags}}) for n in (1, 2))
    return one + (depth - 1) * (two - one)


@pytest.mark.parametrize("name", SIZES)
def test_presets_have_the_published_number_of_parameters(name):
    assert SIZES[name].params in (None, params_of(preset(name)))


def test_sizes_are_of_families_with_a_table():
    assert {size.model_type for size in SIZES.values()} <= set(families())
    assert sum(size.params is not None for size in SIZES.values()) > 120


def test_names_are_found():
    assert preset("llama-3.2-1b")["tie_embedding"] is True
    assert preset("llama") is not preset("llama")
    with pytest.raises(ValueError, match=r"did you mean `llama-3\.2-1b`"):
        preset("llama-3.2-1bb")
    with pytest.raises(ValueError, match="`flagformer presets` lists them all"):
        preset("nothing like it")


def test_the_command_lists_them():
    from typer.testing import CliRunner

    from flagformer.lab.cli.main import app

    ran = CliRunner().invoke(app, ["presets", "llama-3.2"])
    assert "llama-3.2-1b" in ran.output
    assert "1,235,814,400" in ran.output
    assert CliRunner().invoke(app, ["presets", "zzz"]).exit_code == 2


def test_studies_take_presets(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: presets\n"
        "base: {preset: pythia-70m, depth: 1}\n"
        "data: {source: copy, symbols: 8, seq_len: 8}\n"
        "train: {steps: 2, batch_size: 2, warmup: 0}\n"
        "compare: {neox: {}, serial: {parallel_block: false, parallel_block_own_norms: false}}\n"
    )
    study, source = load_study(file)
    assert (study.base["dim"], study.base["depth"]) == (512, 1)
    assert "num_tokens" not in study.base
    assert check_variants(study, source)["neox"].params > 3_000_000
    with pytest.raises(StudyFileError, match=r"`base.preset` must be one of.*did you mean"):
        load_study(file, ["base.preset=pythia-70n"])
