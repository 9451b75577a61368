"""Every family: a directory of transformers, loaded here, computes the same and is exported bit by bit."""

import copy

import published_kinds
import pytest
import torch

pytest.importorskip("transformers")

from published_models import (
    CASES,
    assert_equal_files,
    gap,
    ids_of,
    logits,
    read_config,
    saved_and_loaded,
    theirs_of,
)

import flagformer
from flagformer import AutoregressiveWrapper
from flagformer.interop.hugging_face import export, families


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    return request.param, *saved_and_loaded(theirs_of(request.param), tmp_path_factory)


def test_logits_are_equal(saved):
    _, theirs, _, ours = saved
    ids = ids_of()
    want = logits(theirs, ids)
    assert want.std() > 0.1
    assert gap(ours(ids).detach(), want) < 1e-4


def test_left_padding_is_neutral(saved):
    _, _, _, ours = saved
    ids = ids_of(1, 12)
    padded = torch.cat([torch.full((1, 5), 7), ids], dim=1)
    with torch.no_grad():
        want, got = ours(ids), ours(padded, seq_start_pos=torch.tensor([5]))[:, 5:]
    assert gap(got, want) < 1e-4


# Their classes read the documents of a row as one: `position_ids` change at most the positions.
MIXED = {
    "BLOOM", "BLOOM, 6 heads", "Falcon-H1", "Falcon-H1, norm", "LFM2", "Llama 4", "MPT", "MPT, 6 heads",
    "Mamba 2", "OPT", "Phi 3, long", "Qwen 3 Next", "Qwen 3.5", "Qwen 3.5 MoE", "gpt-oss",
}  # fmt: skip


@torch.no_grad()
def test_packed_documents_are_read_apart(saved):
    """Each as in a row of its own, and as theirs where their masks separate documents by `position_ids`."""
    name, theirs, _, ours = saved
    ids, lengths = ids_of(1, 12), [5, 7]
    want = torch.cat([logits(theirs, part) for part in ids.split(lengths, dim=1)], dim=1)
    got = ours(ids, seq_lens=torch.tensor([lengths]))
    assert gap(got, want) < 1e-4
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    try:
        packed = theirs(ids, position_ids=positions, use_cache=False).logits
    except TypeError:
        pytest.skip(f"{name} takes no `position_ids`")
    assert (gap(got, packed) < 1e-4) == (name not in MIXED)


def test_greedy_text_is_equal(saved):
    _, theirs, _, ours = saved
    prompt = ids_of(1, 8)
    quiet = {"do_sample": False, "max_new_tokens": 32, "min_new_tokens": 32, "eos_token_id": None}
    with torch.no_grad():
        want = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **quiet)[:, 8:]
    for cached in (True, False):
        got = AutoregressiveWrapper(ours).generate(prompt, 32, temperature=0, cache_kv=cached)
        assert torch.equal(got, want)


def test_an_export_is_equal(saved, tmp_path):
    import transformers

    name, theirs, directory, ours = saved
    export(ours, tmp_path / "back", max_shard_bytes=200_000)
    assert_equal_files(directory, tmp_path / "back")
    assert read_config(tmp_path / "back") == read_config(directory)
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation=CASES[name].attention
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = ids_of()
    assert torch.equal(logits(back.eval(), ids), logits(theirs, ids))


def test_half_precision_is_kept(saved, tmp_path):
    _, theirs, _directory, _ = saved
    copy.deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    ours = flagformer.load(tmp_path / "half").eval()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    export(ours, tmp_path / "back")
    assert_equal_files(tmp_path / "half", tmp_path / "back")
    exact = flagformer.load(tmp_path / "half", dtype=torch.float32)
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}


def test_every_family_has_a_case():
    found = {theirs_config(name) for name in CASES}
    found |= {published_kinds.config_of(name).model_type for name in published_kinds.CASES}
    assert found | {"kimi_k2"} == set(families())  # another name, tested with the directories


def theirs_config(name):
    import transformers

    return getattr(transformers, CASES[name].config).model_type
