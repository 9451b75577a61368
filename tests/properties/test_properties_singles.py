"""Every choice and every tuning flag by itself, in each kind of model."""

from functools import cache

import pytest
from property_checks import (
    bf16_is_finite,
    checks_of,
    compiles,
    copies,
    exports,
    failures,
    low_precision_is_finite,
    sees_everything,
)
from property_sample import FEW, SEVERAL, calls_of, grouped
from property_settings import (
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

from commit_sample import part_of
from flagformer.flags import CATALOGUE
from flagformer.lab.reference import choices, settings
from flagformer.lab.reference.selectors import BASE
from flagformer.models.build import MODELS

CHOICES = {choice.name: choice for choice in choices()}
TUNINGS = {f"{name} (tuned)": settings() | flags for name, flags in tunings().items()}
# Settings that no causal model has.
BIDIRECTIONAL = {name: flags for name, flags in TUNINGS.items() if flags["model"] != BASE["model"]}
SINGLES = {
    "nothing": settings(),
    **{name: settings(choice) for name, choice in CHOICES.items() if "model" not in choice.flags},
    **{name: flags for name, flags in TUNINGS.items() if name not in BIDIRECTIONAL},
    **{name: settings() | flags for name, flags in cross_forms().items()},
    **{name: settings() | flags for name, flags in by_layer().items()},
}
ALL = SINGLES | BIDIRECTIONAL


# Graphs of choices are tested with pairs.
TUNED = tuple(name for name in SINGLES if name not in CHOICES)
PARTS = 4


def tiny(name, kind):
    return {**ALL[name], **TINY, "model": kind}


PARTS_OF_KINDS = 6
# Of the numbers of one model, which kinds of models share: tested in decoders, of every setting.
OF_DECODERS = {copies, bf16_is_finite, low_precision_is_finite}


def pytest_generate_tests(metafunc):
    if {"name", "only_kind"} <= set(metafunc.fixturenames):
        whole = metafunc.config.getoption("matrix")
        chosen = [(name, kind) for name in ALL for kind in MODELS if whole or alone(name, kind)]
        metafunc.parametrize(("name", "only_kind"), chosen)


def alone(name, kind):
    """Whether `make test` has a model of this setting only; `make matrix` has one of each in every kind."""
    return kind == "decoder" or name in BIDIRECTIONAL


def checks_in(subject):
    checks = list(checks_of(subject))
    if subject.kind == "encoder" and not SEES_LITTLE & set(subject.flags):
        checks.append(sees_everything)
    return checks


def test_single_setting_has_every_property(name, only_kind, pytestconfig):
    """Of one block, where its order allows; decoders in `make matrix` of two."""
    whole = pytestconfig.getoption("matrix")
    flags = tiny(name, only_kind)
    subject, text = built_or_refused(flags if whole and only_kind == "decoder" else one_block(flags))
    if subject is None:
        refused_by_right(name, only_kind, text)
        return
    assert not failures(subject, [check for check in checks_in(subject) if check is not copies])


def refused_by_right(name, kind, text):
    if name in BIDIRECTIONAL:
        assert kind == "decoder"
        assert "`causal=True` cannot be combined" in text, text
        return
    assert kind != "decoder", text
    assert "`model=decoder`" in text, f"only causal requirements may be refused: {text}"


@pytest.mark.parametrize("part", range(PARTS_OF_KINDS))
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "decoder"])
def test_settings_of_other_kinds_have_every_property(kind, part):
    """A few in one model, of the properties that a decoder's tests do not cover."""
    builds = {}
    for name in list(SINGLES)[part::PARTS_OF_KINDS]:
        flags = one_block(tiny(name, kind))
        text = refusal(flags)
        if text is None:
            builds[name] = flags
        else:
            refused_by_right(name, kind, text)
    found = []
    for members, flags in grouped(builds, FEW, calls_of):
        subject = Subject(flags)
        checks = [check for check in checks_in(subject) if check not in OF_DECODERS]
        found += [f"{', '.join(members)}: {text}" for text in failures(subject, checks)]
    assert not found


@cache
def together(chosen=None, largest=SEVERAL):
    """All settings (or those of `chosen`, a tuple) as a small number of decoders: (names, flags of each).

    Settings that need two blocks are apart, as the others take half the time with one.
    """
    return grouped({name: tiny(name, "decoder") for name in chosen or SINGLES}, largest, is_deep)


def is_deep(flags):
    return one_block(flags) is flags


@pytest.mark.parametrize("part", range(PARTS))
def test_copies_of_settings(part):
    """Several in one model, as a module is copied in the same way next to others."""
    found = [
        f"{', '.join(members)}: {text}"
        for members, flags in together()[part::PARTS]
        for text in failures(Subject(flags), [copies])
    ]
    assert not found


@pytest.mark.parametrize("part", part_of(range(PARTS), PARTS))
def test_settings_compile_and_export(part):
    """Many in one model, as a graph costs about as much for seventy of them as for ten."""
    found = [
        f"{', '.join(members)}: {text}"
        for members, flags in together(TUNED, len(TUNED))[part::PARTS]
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
