"""Saved models: what is restored, and the errors when loading fails."""

import json
import os
import sys

import pytest
import safetensors.torch
import torch
from core_models import context, ids, make, shared
from safetensors.torch import load_file, save_file

import flagformer
from flagformer.norm.rmsnorm import RMSNorm

FLAGS = [
    {},
    {"tie_embedding": True, "rotary_pos_emb": True, "rotary_emb_dim": 4},
    {"model": "encoder", "rel_pos_bias": True},
    {"model": "prefix_decoder", "alibi_pos_bias": True},
    {"attn_kv_heads": (2, 4), "layer_dropout": (0.1, 0.0, 0.1, 0.0), "weight_tie_layers": False},
    {"custom_layers": ("a", "f"), "depth": None},
]


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS)
def test_round_trip(flags, tmp_path):
    model = make(**flags)
    model.save(tmp_path / "new" / "folder")
    back = flagformer.load(tmp_path / "new" / "folder").eval()
    assert torch.equal(back(ids()), model(ids()))
    assert back.explain() == model.explain()
    assert {name: p.requires_grad for name, p in back.named_parameters()} == {
        name: True for name, _ in model.named_parameters()
    }
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "flags.json",
        "model.safetensors",
    ]


@torch.no_grad()
def test_round_trip_with_cross_attention_and_as_text(tmp_path):
    model = shared("cross")
    model.save(str(tmp_path))
    back = flagformer.load(str(tmp_path)).eval()
    assert torch.equal(back(ids(), context=context()), model(ids(), context=context()))


@torch.no_grad()
def test_attention_on_attention_of_0_1_loads(tmp_path):
    """In 0.1 the projection's weight belonged to the module itself."""
    model = make(attn_on_attn=True)
    model.save(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    old = {name.replace("to_out.project.weight", "to_out.weight"): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    safetensors.torch.save_file(old, tmp_path / "model.safetensors")
    assert torch.equal(flagformer.load(tmp_path).eval()(ids()), model(ids()))


@torch.no_grad()
def test_half_precision_round_trip(tmp_path):
    model = make(alibi_pos_bias=True).bfloat16()
    model.save(tmp_path)
    back = flagformer.load(tmp_path).eval()
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert torch.equal(back(ids()), model(ids()))


@torch.no_grad()
def test_layers_built_by_hand(tmp_path):
    for cls in (flagformer.CrossAttender, flagformer.PrefixDecoder):
        torch.manual_seed(2)
        layers = cls(dim=16, depth=1, heads=2)
        model = flagformer.TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=layers).eval()
        side = {"context": torch.randn(2, 5, 16)} if layers.has_cross else {"prefix_attn_len": 3}
        model.save(tmp_path)
        back = flagformer.load(tmp_path).eval()
        assert torch.equal(back(ids(), **side), model(ids(), **side))


def test_saving_again_replaces(tmp_path):
    make().save(tmp_path)
    other = make(rotary_pos_emb=True)
    other.save(tmp_path)
    assert flagformer.load(tmp_path).flags == other.flags
    assert not list(tmp_path.glob("*.partial"))


def test_values_outside_json_are_refused_before_writing(tmp_path):
    model = make(norm=RMSNorm, branch=torch.nn.Identity())
    with pytest.raises(ValueError, match=r"`norm`, `branch` was given as a class or module"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def damaged(tmp_path, name, content):
    """A saved model with one file replaced (None: removed); the text of the error when loading it."""
    make().save(tmp_path)
    path = tmp_path / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        flagformer.load(tmp_path)
    text = str(caught.value)
    assert str(path) in text, "the file at fault is named"
    assert len(text.splitlines()) < 20, "one screen"
    return text


def test_missing_weights(tmp_path):
    assert "does not exist" in damaged(tmp_path, "model.safetensors", None)


def test_weights_file_holds_the_flags(tmp_path):
    model = make(rotary_pos_emb=True)
    model.save(tmp_path)
    (tmp_path / "flags.json").unlink()
    assert flagformer.load(tmp_path).flags == model.flags


def as_of_version_0_1(directory):
    """The same files as version 0.1 wrote them."""
    save_file(load_file(directory / "model.safetensors"), directory / "model.safetensors")
    record = json.loads((directory / "flags.json").read_text())
    del record["saved"]
    (directory / "flags.json").write_text(json.dumps(record, indent=2) + "\n")


def test_saves_of_one_model_are_equal_byte_for_byte(tmp_path):
    model = make()
    written = set()
    for _ in range(8):
        model.save(tmp_path)
        written.add((tmp_path / "model.safetensors").read_bytes())
    assert len(written) == 1


@torch.no_grad()
def test_directories_of_version_0_1(tmp_path):
    model = make(tie_embedding=True)
    model.save(tmp_path)
    as_of_version_0_1(tmp_path)
    assert torch.equal(flagformer.load(tmp_path).eval()(ids()), model(ids()))
    (tmp_path / "flags.json").unlink()
    with pytest.raises(ValueError, match=r"flags\.json does not exist"):
        flagformer.load(tmp_path)


def test_flags_may_be_edited_by_hand(tmp_path):
    make().save(tmp_path)
    text = (tmp_path / "flags.json").read_text()
    (tmp_path / "flags.json").write_text(text.replace('"depth": 2', '"depth": 2, "layer_dropout": 0.5'))
    assert flagformer.load(tmp_path).flags["layer_dropout"] == 0.5


class Killed(BaseException):
    """An exception that no handler catches, like a signal."""


@torch.no_grad()
@pytest.mark.parametrize("version", ["0.1", "now"])
def test_a_killed_save_leaves_the_old_model_the_new_one_or_none(tmp_path, monkeypatch, version):
    old, new = make(rotary_pos_emb=True), make(alibi_pos_bias=True)
    seen = set()
    for last in range(1, 6):
        old.save(tmp_path)
        if version == "0.1":
            as_of_version_0_1(tmp_path)
        calls = []

        def dying(real, last=last, calls=calls):
            def call(*args):
                calls.append(real)
                if len(calls) == last:
                    raise Killed
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                new.save(tmp_path)
            except Killed:
                seen.add("killed")
        try:
            back = flagformer.load(tmp_path).eval()
        except ValueError:  # the error asks to delete that file
            (tmp_path / "flags.json").unlink()
            back = flagformer.load(tmp_path).eval()
            seen.add("refused")
        same = [torch.equal(back(ids()), model(ids())) for model in (old, new)]
        seen.add(("old", "new")[same.index(True)])
    assert seen == {"killed", "refused", "old", "new"}


def test_saving_uses_no_random_numbers_and_training_does_not_alter_the_file(tmp_path):
    model = make(num_clusters=2, window_size=4).train()
    model(ids()).sum().backward()
    state = torch.get_rng_state()
    model.save(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert flagformer.load(tmp_path).flags == model.flags


@torch.no_grad()
def test_dtype_of_each_parameter_is_restored(tmp_path):
    model = make()
    model.attn_layers.bfloat16()
    model.save(tmp_path)
    back = flagformer.load(tmp_path)
    wanted = {name: p.dtype for name, p in model.named_parameters()}
    assert {name: p.dtype for name, p in back.named_parameters()} == wanted
    assert len(set(wanted.values())) == 2


def test_without_safetensors_the_error_names_the_extra(tmp_path, monkeypatch):
    model = make()
    model.save(tmp_path / "old")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'flagformer\[study\]'"):
        model.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ImportError, match="safetensors"):
        flagformer.load(tmp_path / "old")


def test_a_stream_with_other_weights_is_refused(tmp_path):
    model = make(max_mem_len=4, rotary_pos_emb=True)
    stream = model.stream(2)
    stream(ids()[:2])
    stream.save(tmp_path)
    assert flagformer.load(tmp_path).stream(2, tmp_path).length == stream.length
    model.save(tmp_path)  # the same weights
    model.stream(2, tmp_path)
    with torch.no_grad():
        model.token_emb.weight += 1
    model.save(tmp_path)
    with pytest.raises(ValueError, match="was not saved with"):
        flagformer.load(tmp_path).stream(2, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 2,\n "flags": {"dim": 16,\n}}', "flags.json:3 is not valid JSON"),
        ("", "flags.json:1 is not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1, 2]", "another program wrote it"),
        ('{"flags": 3, "schema": 1}', "another program wrote it"),
        ('{"schema": 99, "flags": {}}', "has schema 99, but this version reads schemas 1 and 2"),
        ('{"flags": {}}', "has schema None, but this version reads schemas 1 and 2"),
        ('{"schema": 2, "flags": {"dimm": 16}}', "`dimm` is not a flag; did you mean `dim`?"),
        ('{"schema": 2, "flags": {}}', "`num_tokens` is required"),
    ],
)
def test_damaged_flags(tmp_path, content, said):
    assert said in damaged(tmp_path, "flags.json", content)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x00" * 100, b"\xff" * 64])
def test_damaged_weights(tmp_path, content):
    assert "cannot be read" in damaged(tmp_path, "model.safetensors", content)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated_weights(tmp_path, share):
    make().save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    assert "cannot be read" in damaged(tmp_path, "model.safetensors", whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    "other", [{"dim": 32}, {"depth": 3}, {"rotary_pos_emb": True}, {"tie_embedding": True}]
)
def test_weights_of_another_model(tmp_path, other):
    make(**other).save(tmp_path / "other")
    foreign = (tmp_path / "other" / "model.safetensors").read_bytes()
    text = damaged(tmp_path, "model.safetensors", foreign)
    assert "does not hold the weights of" in text


def test_nothing_in_the_files_is_executed(tmp_path):
    """Flags are plain values: a pickle as weights is refused, a class name stays a string."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    damaged(tmp_path, "model.safetensors", pickle.dumps(Bomb()))
    record = {"schema": 1, "flags": {**make().flags, "norm": "flagformer.norm.rmsnorm.RMSNorm"}}
    assert "`norm` must be a Spec" in damaged(tmp_path, "flags.json", json.dumps(record))
    assert not (tmp_path / "exploded").exists()


def test_directory_in_place_of_a_file(tmp_path):
    make().save(tmp_path)
    (tmp_path / "flags.json").unlink()
    (tmp_path / "flags.json").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        flagformer.load(tmp_path)


def test_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    old = make()
    old.save(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(rotary_pos_emb=True).save(tmp_path)
    monkeypatch.undo()
    back = flagformer.load(tmp_path).eval()
    assert torch.equal(back(ids()), old(ids()))
