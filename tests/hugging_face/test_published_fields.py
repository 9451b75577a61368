"""Every field of a family's config, changed: refused by name, without effect on both sides, or followed."""

import copy
import json
import random
from collections import Counter

import pytest
import torch

pytest.importorskip("transformers")

from published_models import BASE, CASES, config_of, gap, ids_of, logits, read_config, theirs_of

import flagformer
from flagformer.interop.hugging_face import ConversionError, family_of

# decided by the files, or not settings of a model
SKIPPED = {
    "tie_word_embeddings", "output_attentions", "model_type", "architectures", "dtype",
    "transformers_version",
}  # fmt: skip
SHARE = 0.15  # of the changes that `make test` tries; `make matrix` tries all


def changes_of(value):
    """Other values of a field."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2 or 7]
    if isinstance(value, float):
        return [value * 1.5 + 0.1]
    if isinstance(value, str):
        return ["relu", "gelu", "gated-gelu", "nonsense"]
    if value is None:
        return [True, 2, 0.5]
    if isinstance(value, list):
        return [value[::-1], value[:-1]]
    if "rope_theta" not in value:
        return []
    more = ({"rope_theta": 777.0}, {"rope_type": "linear", "factor": 2.0}, {"partial_rotary_factor": 0.5})
    return [{**value, **one} for one in (*more, {"unheard_of": 3})]


def outcomes(config, directory, request, outcome_of):
    """(outcome -> number, the wrong ones) of changes of single fields in a saved directory, a share of them
    or, with `--matrix`, all.

    Args:
        outcome_of: fields of config.json -> the outcome of loading them.
    """
    full = json.loads(config.to_json_string(use_diff=False)) | read_config(directory)
    seen, wrong = Counter(), []
    changes = [(field, new) for field in full if field not in SKIPPED for new in changes_of(full[field])]
    if not request.config.getoption("--matrix"):
        changes = random.Random(0).sample(changes, int(len(changes) * SHARE))
    for field, new in changes:
        said = copy.deepcopy(full) | {field: new}
        (directory / "config.json").write_text(json.dumps(said))
        outcome = outcome_of(said)
        seen[outcome] += 1
        if outcome.startswith("wrong"):
            wrong.append(f"{field}={new!r}: {outcome}")
    return seen, wrong


@pytest.mark.parametrize("name", BASE)
def test_no_changed_field_is_read_wrongly(name, tmp_path, request):
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    state, before = theirs.state_dict(), flagformer.load(tmp_path)
    seen, wrong = outcomes(
        config_of(name), tmp_path, request, lambda said: outcome_of(name, tmp_path, said, state, before)
    )
    print(name, dict(seen))
    assert not wrong, (wrong, seen)
    assert seen["refused"] > 0


def outcome_of(name, directory, said, state, before):
    try:
        ours = flagformer.load(directory).eval()
    except ConversionError:
        return "refused"
    except Exception as error:
        return f"wrong: {type(error).__name__} {error}"
    try:
        config = config_of(name, {key: value for key, value in said.items() if key not in SKIPPED})
        theirs = theirs_of(name, config)
        theirs.load_state_dict(state)
        want = logits(theirs, ids_of())
    except Exception:  # transformers does not build it
        return "not built"
    with torch.no_grad():
        found = gap(ours(ids_of()), want)
    if not found < 1e-4:
        return f"wrong by {found:.1e}"
    return "inert" if ours.flags == before.flags else "followed"


@pytest.mark.parametrize("name", BASE)
def test_an_unknown_field_is_refused(name):
    config = json.loads(config_of(name).to_json_string())
    with pytest.raises(ConversionError, match=r"`attn_gate`.*`quantization_config`"):
        family_of(config["model_type"]).flags_of(
            {**config, "attn_gate": True, "quantization_config": {"bits": 4}}
        )


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("Qwen 3 MoE", "mlp_only_layers", [0, 1, 2, 3, 4, 5]), ("DeepSeek V3", "first_k_dense_replace", 6)],
)
def test_layers_without_any_experts_are_refused_by_the_name_of_the_field(name, field, value):
    config = json.loads(config_of(name).to_json_string()) | {field: value}
    with pytest.raises(ConversionError, match=rf"config .*`{field}`: .* must leave a layer with experts"):
        family_of(config["model_type"]).flags_of(config)


@pytest.mark.parametrize("name", CASES)
def test_an_absent_field_has_the_default_of_the_class(name):
    """A field that a file leaves out is read as its config class reads it."""
    full = json.loads(config_of(name).to_json_string(use_diff=False)) | {"tie_word_embeddings": False}
    hidden = {"model_type", "architectures", "transformers_version", "layer_types", "qk_head_dim"}
    given = {key: value for key, value in full.items() if key not in hidden}
    family, wrong = family_of(full["model_type"]), []
    for field in given:
        rest = {key: value for key, value in copy.deepcopy(given).items() if key != field}
        try:
            there = type(config_of(name))(**copy.deepcopy(rest))
        except Exception:  # transformers does not build it
            continue
        want = flags_or_reasons(family, json.loads(there.to_json_string(use_diff=False)))
        got = flags_or_reasons(family, rest)
        if got != want and not isinstance(got, ConversionError):
            wrong.append((field, got, want))
    assert not wrong


def flags_or_reasons(family, config):
    try:
        return family.flags_of(config)
    except ConversionError as error:
        return error
