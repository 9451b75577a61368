"""Models, streams and checkpoints of version 0.1 load under the parameter names of this version.

`saved_by_0_1/` was written by version 0.1: a directory per model, with its outputs for the inputs below in
`expected.safetensors`.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_models import make
from safetensors.torch import load_file

import flagformer
from flagformer.lab.reference import choices, settings
from flagformer.lab.train.checkpoint import CURRENT, read_checkpoint, write_checkpoint
from flagformer.lab.train.config import TrainConfig, Trial
from flagformer.lab.train.optimizers.groups import make_optimizer
from flagformer.lab.train.process_group import SINGLE
from flagformer.lab.train.shards import load_shards
from flagformer.lab.train.state import State
from flagformer.storage.schema import RENAMED, current_name, rename_saved

SAVED = Path(__file__).parent / "saved_by_0_1"
MODELS = sorted(path.name for path in SAVED.iterdir())
IDS = torch.tensor([[0, 3, 6, 9, 1, 4]])
SOURCE = torch.tensor([[0, 2, 4, 6, 8]])
IMAGES = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
INPUTS = {"vit": (IMAGES,), "xtransformer": (SOURCE, IDS), "memformer": (SOURCE, IDS)}

# (class, attribute) -> the attribute of version 0.1
OLD = {
    **{(norm, "weight"): "gain" for norm in ("LayerNorm", "RMSNorm", "ScaleNorm", "WideNorm")},
    **{(cls, "w_in"): "inner" for cls in ("Dense", "GLU", "MixtureOfExperts")},
    **{(cls, "w_out"): "outer" for cls in ("Dense", "GLU", "MixtureOfExperts")},
    ("HeadScale", "weight"): "gain",
    ("LayerScale", "weight"): "gain",
    ("Gain", "weight"): "value",
    ("Scaled", "weight"): "gains",
    ("RMSQKNorm", "q_weight"): "q_gain",
    ("RMSQKNorm", "k_weight"): "k_gain",
    ("Attention", "prefix_kv"): "seats",
    ("ScorePipeline", "normalizer"): "weights",
    ("ScorePipeline", "score_mods"): "mods",
    ("ScorePipeline", "weight_mods"): "mixes",
    ("PatchEmbedding", "pos_emb"): "places",
}  # fmt: skip


def old_names(model):
    """Names of this version -> of version 0.1."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {}
    for name in model.state_dict():
        parts = name.split(".")
        owners = [type(modules[".".join(parts[:depth])]).__name__ for depth in range(len(parts))]
        found[name] = ".".join(OLD.get(pair, pair[1]) for pair in zip(owners, parts))
    return found


def every_setting():
    whole = {name: flagformer.load(SAVED / name).flags for name in MODELS}
    return {choice.name: settings(choice) for choice in choices()} | whole


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_directories_of_0_1_load(name):
    model = flagformer.load(SAVED / name)
    outputs = model.eval()(*INPUTS.get(name, (IDS,)))
    expected = load_file(SAVED / name / "expected.safetensors")
    for number, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        torch.testing.assert_close(output, expected[f"output {number}"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["experts", "post_norm"])
def test_streams_of_0_1_resume(name):
    stream = flagformer.load(SAVED / name).stream(1, SAVED / name)
    assert stream.length == 10
    torch.testing.assert_close(stream(IDS), load_file(SAVED / name / "expected.safetensors")["stream"])


def test_the_directories_use_every_row():
    saved = {key for name in MODELS for key in load_file(SAVED / name / "model.safetensors")}
    assert not [row for row in RENAMED if not any(re.search(row[0], key) for key in saved)]


@torch.no_grad()
def test_a_directory_of_0_1_saved_again_has_the_new_names(tmp_path):
    flagformer.load(SAVED / "post_norm").save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {current_name(key) for key in load_file(SAVED / "post_norm" / "model.safetensors")} == set(saved)
    shutil.copy(SAVED / "post_norm" / "flags.json", tmp_path)  # as a save that was interrupted leaves it
    again = flagformer.load(tmp_path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in saved.items())


def test_the_map_is_complete():
    """From the names of version 0.1 to those of this version, for every setting."""
    wrong, changed = [], set()
    for name, flags in every_setting().items():
        with torch.device("meta"):
            names = old_names(flagformer.build(flags))
        wrong += [
            f"{name}: {old} -> {current_name(old)}" for new, old in names.items() if current_name(old) != new
        ]
        wrong += [f"{name}: {new} -> {current_name(new)}" for new in names if current_name(new) != new]
        assert len(set(names.values())) == len(names)
        changed |= {re.sub(r"\d+", "N", old) for new, old in names.items() if new != old}
    assert not wrong, "\n".join(wrong)
    assert len(changed) > 30


def test_names_of_the_model_are_never_changed():
    assert rename_saved({"a.gain": 1, "b.gain": 2}, {"a.gain"}) == {"a.gain": 1, "b.weight": 2}


def test_checkpoints_of_0_1_load(tmp_path):
    data = {"source": "copy", "symbols": 8, "seq_len": 12}
    flags = {"dim": 8, "depth": 1, "heads": 2, "attn_num_mem_kv": 2}
    trial = Trial.model_validate({"flags": flags, "data": data})
    state = State(trial, tmp_path, torch.device("cpu"), SINGLE)
    state.step = 3
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.normal_()
    state.save()
    saved = read_checkpoint(tmp_path / CURRENT)
    names = old_names(state.model)
    old = {names[name]: value for name, value in saved.model.items()}
    assert old.keys() != saved.model.keys()
    write_checkpoint(tmp_path / CURRENT, replace(saved, model=old))
    loaded = State(trial, tmp_path, torch.device("cpu"), SINGLE)
    assert loaded.step == 3
    assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in saved.model.items())


def trained(seed):
    """A model and its optimizer after two steps."""
    torch.manual_seed(seed)
    model = make(attn_num_mem_kv=2)
    optimizer = make_optimizer(model, TrainConfig())
    for _ in range(2):
        model(torch.randint(11, (2, 9))).sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.filterwarnings("ignore:.*torch.distributed:UserWarning")
def test_shards_of_0_1_load(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = trained(0)
    names = old_names(model)
    weights, moments = get_state_dict(model, optimizer)
    groups = [{**one, "params": [names[name] for name in one["params"]]} for one in moments["param_groups"]]
    held = {names[name]: value for name, value in moments["state"].items()}
    state = {names[name]: value for name, value in weights.items()}
    dcp.save(
        {"model": state, "optimizer": {"state": held, "param_groups": groups}},
        checkpoint_id=tmp_path,
        no_dist=True,
    )
    other, other_optimizer = trained(1)
    load_shards(tmp_path, other, other_optimizer, SINGLE)
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(mine, theirs)
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, other_optimizer.state[theirs][key])
