"""No flag is ignored silently: lists given to slots, per-layer values, values next to other mistakes."""

import pytest
from property_settings import TINY, tunings

from flagformer.flags import CATALOGUE, LAYER_SCOPES, SLOTS, FlagError, resolve

BASE = {name: TINY[name] for name in ("dim", "heads", "attn_dim_head")} | {"depth": 2}
# two layers of each kind in a plan that has all three
PLAN = {**BASE, "cross_attend": True}
MIXERS = {**BASE, "depth": None, "custom_layers": "mfmf"}
LAYERS = {"attention": 2, "mixer": 2, "feedforward": 2, "branch": 6}
ONE_PLACE = [slot for slot in SLOTS.values() if slot.scope in LAYER_SCOPES and not slot.many]
PER_LAYER = [slot.name for slot in ONE_PLACE if slot.scope in LAYERS]
WHOLE = [slot.name for slot in ONE_PLACE if slot.scope not in LAYERS]


def two_fillers(slot):
    """Custom classes."""
    known = CATALOGUE.in_slot(slot)[0].cls
    return [type(name, (known,), {}) for name in ("First", "Second")]


def refusal(flags):
    with pytest.raises(FlagError) as caught:
        resolve(flags, CATALOGUE)
    return {finding.flag: finding.message for finding in caught.value.findings}


@pytest.mark.parametrize("slot", PER_LAYER)
def test_a_list_is_one_component_a_layer(slot):
    count, plan = LAYERS[SLOTS[slot].scope], MIXERS if SLOTS[slot].scope == "mixer" else PLAN
    first, second = two_fillers(slot)
    given = [first, second] * (count // 2)
    for form in (list(given), tuple(given)):
        modules = resolve({**plan, slot: form}, CATALOGUE).modules
        kinds = [kind for kind in "acfm" if slot_reaches(slot, kind)]
        groups = [[m for m in modules if m.kind == kind] for kind in kinds] or [modules]
        assert all([m.slots[slot][0].cls for m in group] == given for group in groups)
    for wrong in (given[:1], [*given, first], []):
        assert f"has {len(wrong)} values for {count}" in refusal({**plan, slot: wrong})[slot]


def slot_reaches(slot, kind):
    if SLOTS[slot].scope != "attention":
        return SLOTS[slot].scope == {"f": "feedforward", "m": "mixer"}.get(kind)
    return kind in "ac" and CATALOGUE.reaches(slot, kind)


@pytest.mark.parametrize("slot", WHOLE)
def test_a_list_for_a_component_of_the_whole_stack_is_refused(slot):
    first, second = two_fillers(slot)
    for given in ([first, second], (first,), []):
        assert "must be one component" in refusal({**PLAN, slot: given})[slot]


@pytest.mark.parametrize("slot", [slot for slot in PER_LAYER if SLOTS[slot].scope != "branch"])
def test_a_component_that_no_layer_has_is_refused(slot):
    order = "aa" if SLOTS[slot].scope == "feedforward" else "ff"  # neither attention nor a mixer
    found = refusal({**BASE, "depth": None, "custom_layers": order, slot: two_fillers(slot)[0]})
    assert "has no effect here" in found[slot]


def tuned_per_layer():
    """name -> flags with a selector and its parameter, for parameters of a selected component only."""
    found = {}
    for name, flags in tunings().items():
        owners = [item for item, _ in CATALOGUE.params_named(name)]
        scope = SLOTS[owners[0].slot].scope if owners else ""
        # `mixer` names one mixer for each layer, and has no empty value
        if scope in LAYERS and scope != "mixer" and all(item.select not in (None, name) for item in owners):
            found[name] = (flags, scope)
    return found


@pytest.mark.parametrize("name", tuned_per_layer())
def test_a_value_of_a_layer_that_does_not_select_it_is_refused(name):
    flags, scope = tuned_per_layer()[name]
    item = CATALOGUE.params_named(name)[0][0]
    count = LAYERS[scope]
    rest = [None] * (count - 1)
    extra = {key: value for key, value in flags.items() if key not in (name, item.select, "model")}
    chosen = {**PLAN, "causal": True, **extra, item.select: (flags[item.select], *rest)}
    value = flags[name]
    found = refusal({**chosen, name: (value,) * count})[name]
    assert "has no effect at layer 1" in found
    assert repr(value) in found
    resolve({**chosen, name: (value, *rest)}, CATALOGUE)  # None is unset
    resolve({**chosen, name: value}, CATALOGUE)  # one value for all layers that select it


def dead_ones():
    """Flags, each of which tunes a component that is not selected."""
    found = {}
    for name, flags in tunings().items():
        owners = [item for item, _ in CATALOGUE.params_named(name)]
        if (
            owners
            and SLOTS[owners[0].slot].scope in LAYER_SCOPES
            and all(item.select not in (None, name) for item in owners)
        ):
            found[name] = flags[name]
    return found


@pytest.mark.parametrize(
    "mistake", [{"zzzz": 1}, {"dim": "x"}, {"attn_dropout": 7}, {"depth": None}, {"custom_layers": "abc"}]
)
def test_unread_flags_are_reported_with_other_mistakes(mistake):
    dead = dead_ones()
    assert len(dead) > 15
    found = refusal({**BASE, **mistake, **dead})
    assert set(dead) | set(mistake) <= set(found) | {"custom_layers", "depth"}
    assert all("has no effect here" in found[name] for name in dead)


def test_a_misspelt_selector_does_not_make_its_parameters_unread():
    assert set(refusal({**BASE, "rotary_pos_em": True, "rotary_emb_dim": 4})) == {"rotary_pos_em"}


def test_a_flag_that_its_cross_form_overrides_everywhere_is_unread():
    found = refusal({**BASE, "only_cross": True, "attn_kv_heads": 2, "cross_attn_kv_heads": 4})
    assert set(found) == {"attn_kv_heads"}


def test_equal_layers_are_resolved_once():
    resolved = resolve({**BASE, "depth": 1000, "attn_kv_heads": (2, 4) * 500}, CATALOGUE)
    assert len(resolved.modules) == 2000
    assert len({id(module) for module in resolved.modules}) == 3


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"depth": 100_000}, "depth"),
        ({"depth": 2**31 - 1, "weight_tie_layers": True}, "depth"),
        ({"depth": None, "custom_layers": "af" * 50_000}, "custom_layers"),
        ({"layers_execute_order": (0, 1, 2, 3) * 50_000}, "layers_execute_order"),
    ],
)
def test_more_layers_than_can_be_built_are_refused_early(flags, name):
    assert set(refusal({**BASE, **flags})) == {name}
