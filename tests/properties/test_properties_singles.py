"""Every choice and every tuning flag by itself, in each kind of model."""

import pytest
from property_checks import checks_of, compiles, exports, failures, sees_everything
from property_settings import (
    AHEAD,
    OTHER_INPUTS,
    SEES_LITTLE,
    TINY,
    by_layer,
    cross_forms,
    for_graphs,
    one_block,
    tunings,
)
from property_subject import Subject, built_or_refused, refusal

from flagformer.flags import CATALOGUE
from flagformer.lab.reference import choices, settings
from flagformer.models.build import MODELS

CHOICES = {choice.name: choice for choice in choices()}
TUNINGS = {f"{name} (tuned)": settings() | flags for name, flags in tunings().items()}
# Settings that no causal model has.
BIDIRECTIONAL = {name: flags for name, flags in TUNINGS.items() if AHEAD & set(flags)}
SINGLES = {
    "nothing": settings(),
    **{name: settings(choice) for name, choice in CHOICES.items() if "model" not in choice.flags},
    **{name: flags for name, flags in TUNINGS.items() if name not in BIDIRECTIONAL},
    **{name: settings() | flags for name, flags in cross_forms().items()},
    **{name: settings() | flags for name, flags in by_layer().items()},
}
ALL = SINGLES | BIDIRECTIONAL


# Graphs of choices are tested with pairs.
TUNED = [name for name in SINGLES if name not in CHOICES]
PARTS = 4


def tiny(name, kind):
    return {**ALL[name], **TINY, "model": kind}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ALL)
def test_single_setting_has_every_property(name, kind):
    flags = tiny(name, kind)
    subject, text = built_or_refused(flags if kind == "decoder" else one_block(flags))
    if subject is None and name in BIDIRECTIONAL:
        assert kind == "decoder"
        assert "`causal=True` cannot be combined" in text, text
        return
    if subject is None:
        assert kind != "decoder", text
        assert "`model=decoder`" in text, f"only causal requirements may be refused: {text}"
        return
    checks = list(checks_of(subject))
    if kind == "encoder" and not SEES_LITTLE & set(flags):
        checks.append(sees_everything)
    assert not failures(subject, checks)


def together(names):
    """The names in a small number of groups, each of which is one model: (names, flags of the model)."""
    groups = []
    for name in names:
        mine = tiny(name, "decoder")
        for members, flags in groups:
            agree = all(flags.get(flag, value) == value for flag, value in mine.items())
            if agree and refusal({**flags, **mine}) is None:
                members.append(name)
                flags.update(mine)
                break
        else:
            groups.append(([name], mine))
    return groups


@pytest.mark.parametrize("part", range(2))
def test_settings_compile_and_export(part):
    """Many in one model, as a graph costs about as much for seventy of them as for ten."""
    found = [
        f"{', '.join(members)}: {text}"
        for members, flags in together(TUNED)[part::2]
        for text in failures(Subject(for_graphs(flags)), [compiles, exports])
    ]
    assert not found


@pytest.mark.parametrize("kind", ["encoder", "prefix_decoder"])
@pytest.mark.parametrize(
    "name",
    ["nothing", "rotary_pos_emb", "rel_pos_bias", "cross_attend", *BIDIRECTIONAL],
)
def test_other_kinds_compile_and_export(name, kind):
    assert not failures(Subject(for_graphs(tiny(name, kind))), [compiles, exports])


def test_every_flag_of_the_catalogue_is_tested():
    tried = {name for flags in ALL.values() for name in flags} | set(TINY)
    left_out = set(CATALOGUE.names()) - tried
    assert left_out == {"causal"} | OTHER_INPUTS, "`causal` is fixed by the model; all others need a setting"
