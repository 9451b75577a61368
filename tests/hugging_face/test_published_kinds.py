"""Families that are no decoders: a directory of transformers computes the same and is exported bit by bit."""

import copy
import json

import pytest
import torch

pytest.importorskip("transformers")

from published_kinds import (
    CASES,
    MASKED,
    PAIRS,
    ROWS,
    SPEECH,
    config_of,
    given_of,
    got_of,
    padded,
    theirs_of,
    valid,
    want_of,
)
from published_models import assert_equal_files, gap, ids_of, read_config, saved_and_loaded
from test_published_fields import SKIPPED, flags_or_reasons, outcomes

import flagformer
from flagformer.interop.hugging_face import ConversionError, export, family_of


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    return request.param, *saved_and_loaded(theirs_of(request.param), tmp_path_factory)


def gap_of(name, theirs, ours):
    given = given_of(name)
    want, got = want_of(name, theirs, given), got_of(name, ours, given)
    assert want.shape == got.shape
    assert want.std() > 0.02
    return gap(valid(name, given, got), valid(name, given, want))


def test_outputs_are_equal(saved):
    name, theirs, _, ours = saved
    assert gap_of(name, theirs, ours) < 1e-4


def test_padding_is_neutral_on_both_sides(saved):
    name, _, _, ours = saved
    if name not in {*MASKED, *ROWS}:
        pytest.skip("no rows of tokens")
    ids = ids_of(2, 12)
    wider, mask = padded(ids, 5, 3)
    with torch.no_grad():
        want = ours(ids)
        got = ours(wider, mask=mask, seq_start_pos=torch.tensor([5, 5]))
    assert gap(got[:, 5:17] if name in MASKED else got, want) < 1e-4


def test_greedy_text_of_pairs_is_equal(saved):
    import transformers

    name, theirs, _, ours = saved
    if name not in PAIRS:
        pytest.skip("no decoder")
    source, mask = padded(ids_of(2, 9), 0, 3)
    quiet = transformers.GenerationConfig(
        decoder_start_token_id=2, pad_token_id=0, max_new_tokens=32, use_cache=False
    )
    theirs.generation_config = quiet
    with torch.no_grad():
        want = theirs.generate(source, attention_mask=mask.long())[:, 1:]
    assert want.shape == (2, 32)
    for cached in (True, False):
        start = torch.full((2, 1), 2)
        got = ours.generate(source, start, 32, mask=mask, temperature=0, cache_kv=cached)
        assert torch.equal(got, want)


def test_greedy_text_of_speech_is_equal(saved):
    """transformers returns the new tokens alone; its encoder takes full recordings only, without a mask."""
    import transformers

    name, theirs, _, ours = saved
    if name not in SPEECH:
        pytest.skip("no speech")
    frames, start = given_of(name)["input_features"], torch.tensor([[2, 5], [2, 7]])
    for cached in (True, False):
        theirs.generation_config = transformers.GenerationConfig(
            decoder_start_token_id=2, pad_token_id=0, max_new_tokens=32, use_cache=cached
        )
        with torch.no_grad():
            want = theirs.generate(frames, decoder_input_ids=start)
        assert want.shape == (2, 32)
        assert torch.equal(ours.generate(frames.mT, start, 32, temperature=0, cache_kv=cached), want)


@torch.no_grad()
@pytest.mark.parametrize("frames", [7, 10])
def test_padding_of_speech_is_neutral(saved, frames):
    name, _, _, ours = saved
    if name not in SPEECH:
        pytest.skip("no speech")
    wider, target = given_of(name)["input_features"].mT, ids_of(2, 7)
    mask = (torch.arange(wider.shape[1]) < frames).expand(2, -1)
    want = ours.encode(wider[:, :frames])
    got = ours.encode(wider, mask)[:, : want.shape[1]]
    assert gap(got, want) < 1e-4
    start = target[:, :2]
    text = ours.generate(wider[:, :frames], start, 9, temperature=0)
    assert torch.equal(ours.generate(wider, start, 9, mask=mask, temperature=0), text)


def test_padding_of_a_source_is_neutral(saved):
    name, _, _, ours = saved
    if name not in PAIRS:
        pytest.skip("no source")
    ids, target = ids_of(2, 9), ids_of(2, 7)
    wider, mask = padded(ids, 0, 3)
    with torch.no_grad():
        want = ours.decoder.net(target, context=ours.encode(ids))
        got = ours.decoder.net(target, context=ours.encode(wider, mask), context_mask=mask)
    assert gap(got, want) < 1e-4


def test_an_export_is_equal(saved, tmp_path):
    name, theirs, directory, ours = saved
    export(ours, tmp_path / "back", max_shard_bytes=200_000)
    assert_equal_files(directory, tmp_path / "back")
    assert read_config(tmp_path / "back") == read_config(directory)
    back, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    given = given_of(name)
    assert gap(want_of(name, back.eval(), given), want_of(name, theirs, given)) < 1e-5


def test_a_model_of_its_flags_is_exported(saved, tmp_path):
    """A model that was not loaded has the tensors and a config of the family."""
    name, theirs, directory, ours = saved
    made = flagformer.build(ours.flags).eval()
    made.load_state_dict(ours.state_dict())
    export(made, tmp_path / "back", model_type=theirs.config.model_type)
    assert_equal_files(directory, tmp_path / "back")
    back, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert gap_of(name, back.eval(), ours) < 1e-4


def test_half_precision_is_kept(saved, tmp_path):
    _, theirs, _directory, _ = saved
    copy.deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    ours = flagformer.load(tmp_path / "half").eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    export(ours, tmp_path / "back")
    assert_equal_files(tmp_path / "half", tmp_path / "back")


@pytest.mark.parametrize("name", CASES)
def test_no_changed_field_is_read_wrongly(name, tmp_path, request):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    state = theirs.state_dict()
    seen, wrong = outcomes(
        config_of(name), tmp_path, request, lambda said: outcome_of(name, tmp_path, said, state)
    )
    assert not wrong, (wrong, seen)


def outcome_of(name, directory, said, state):
    try:
        ours = flagformer.load(directory).eval()
    except ConversionError:
        return "refused"
    except Exception as error:
        return f"wrong: {type(error).__name__} {error}"
    try:
        theirs = theirs_of(name, config_of(name, {key: said[key] for key in said if key not in SKIPPED}))
        theirs.load_state_dict(state)
        given = given_of(name)
        want = want_of(name, theirs, given)
    except Exception:  # transformers does not build it
        return "not built"
    found = gap(valid(name, given, got_of(name, ours, given)), valid(name, given, want))
    return "equal" if found < 1e-4 else f"wrong by {found:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_field_is_refused(name):
    config = read_as_json(name)
    with pytest.raises(ConversionError, match=r"`attn_gate`.*`quantization_config`"):
        table_of(name).flags_of({**config, "attn_gate": True, "quantization_config": {"bits": 4}})


@pytest.mark.parametrize("name", CASES)
def test_an_absent_field_has_the_default_of_the_class(name):
    full, wrong = read_as_json(name), []
    given = {key: value for key, value in full.items() if key not in {"architectures", "label2id"}}
    for field in set(given) - {"model_type", "transformers_version"}:
        rest = {key: value for key, value in copy.deepcopy(given).items() if key != field}
        try:
            there = type(config_of(name))(**copy.deepcopy(rest))
        except Exception:  # transformers does not build it
            continue
        want = flags_or_reasons(table_of(name), json.loads(there.to_json_string(use_diff=False)))
        got = flags_or_reasons(table_of(name), rest)
        if got != want and not isinstance(got, ConversionError):
            wrong.append((field, got, want))
    assert not wrong


def read_as_json(name):
    return json.loads(config_of(name).to_json_string(use_diff=False))


def table_of(name):
    return family_of(config_of(name).model_type).of_class([CASES[name].cls])


def test_a_head_of_its_own_is_kept(tmp_path):
    """Files of T5 v1.1 hold an output projection next to the embedding."""
    from safetensors.torch import load_file, save_file

    theirs_of("T5 v1.1").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    torch.manual_seed(1)
    tensors["lm_head.weight"] = torch.randn_like(tensors["shared.weight"])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = read_config(tmp_path) | {"tie_word_embeddings": False}
    del config["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = flagformer.load(tmp_path).eval()
    assert torch.equal(ours.decoder.net.head.project.weight, tensors["lm_head.weight"])
    assert ours.flags["dec_logits_scale"] == 1
    export(ours, tmp_path / "back")
    assert_equal_files(tmp_path, tmp_path / "back")


def test_the_token_of_masked_patches_is_left_out(tmp_path):
    theirs = theirs_of("DINOv2", config_of("DINOv2", {"use_mask_token": True}))
    theirs.save_pretrained(tmp_path)
    ours = flagformer.load(tmp_path).eval()
    assert ours.source.dropped == ("embeddings.mask_token",)
    assert gap_of("DINOv2", theirs, ours) < 1e-4
    export(ours, tmp_path / "back")
    back, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert gap_of("DINOv2", back.eval(), ours) < 1e-4


def test_another_head_is_refused(tmp_path):
    theirs_of("BERT").save_pretrained(tmp_path)
    config = read_config(tmp_path) | {"architectures": ["BertForTokenClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"must name one of 'BertForMaskedLM'.*TokenClassification"):
        flagformer.load(tmp_path)
