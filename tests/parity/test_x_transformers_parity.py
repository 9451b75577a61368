"""Weights of x-transformers 1.27 and 2.31 give the same logits and gradients here, for every flag."""

from typing import Any

import pytest
import torch
from parity_case import NEW, OLD, Case, run
from parity_cases import CASES, FIXED, SINGLE, WHOLE, WITHOUT_PARITY
from parity_page import counterparts
from parity_peer import build_peer, result
from torch import Tensor

import flagformer
from flagformer.flags import CATALOGUE
from flagformer.interop import load_x_transformers
from flagformer.interop.dialect import Dialect, version_of
from flagformer.interop.x_transformers import convert_x_transformers

# fp32: logits are about 1, so one rounding is 1e-7, and two layers summed in another order come to 2e-6. A
# wrong formula (a factor, an order of heads) differs by 1e-3 and more, as weights are perturbed.
TOLERANCE = 1e-5
COMPARED = [
    (version, name) for version in (OLD, NEW) for name, case in CASES.items() if version in case.versions
]


def of_peer(version: str, name: str, old_peer: dict[str, Any]) -> dict[str, Any]:
    found = old_peer["results"][name] if version == OLD else result(CASES[name], NEW)
    assert "error" not in found, found.get("error")
    return found


def compare(ours: torch.nn.Module, theirs: dict[str, Any], case: Case, version: str) -> tuple[float, float]:
    """The largest difference of logits, and of gradients relative to the largest of their parameter.

    The gradients here are pulled back to the weights of the peer through the conversion: a permuted, sliced,
    scaled or shared weight is compared in the peer's form.
    """
    stored = theirs["weights"].items()
    weights = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in stored}
    carried = convert_x_transformers(weights, ours, Dialect(version, flags=case.peer_flags(version)))
    carried.write()
    said = run(ours, case)
    said[-1].backward()
    targets, values = zip(*[pair for pair in carried.pairs() if pair[1].requires_grad])
    leaves = {name: value for name, value in weights.items() if value.requires_grad}
    gradients = torch.autograd.grad(
        values, list(leaves.values()), [t.grad for t in targets], allow_unused=True
    )
    mine = {name: g for name, g in zip(leaves, gradients) if g is not None}
    return (said.detach() - theirs["said"]).abs().max().item(), apart(
        mine, theirs["gradients"], theirs["weights"]
    )


def apart(mine: dict[str, Tensor], theirs: dict[str, Tensor], weights: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, relative to its largest element.

    Gradients that cancel have the rounding of their terms: a bias before a softmax is measured relative to a
    twentieth of the model's largest gradient, a scalar parameter (ScaleNorm's) relative to all of it.
    """
    top = max(g.abs().max().item() for g in theirs.values())
    worst = 0.0
    for name, gradient in theirs.items():
        shared = [n for n in mine if weights[n].data_ptr() == weights[name].data_ptr()]
        assert shared or not gradient.any(), f"no gradient here for `{name}`"
        total = sum((mine[n] for n in shared), torch.zeros_like(gradient))
        largest = max(gradient.abs().max().item(), top * (0.05 if gradient.numel() > 1 else 1.0))
        worst = max(worst, (total - gradient).abs().max().item() / largest)
    return worst


@pytest.mark.parametrize(("version", "name"), COMPARED)
@pytest.mark.filterwarnings("ignore:.*encoder.to_logits.weight")
def test_same_logits_and_gradients(version: str, name: str, old_peer: dict[str, Any]) -> None:
    case = CASES[name]
    ours = flagformer.build(case.our_flags(version)).eval()
    logits, gradients = compare(ours, of_peer(version, name, old_peer), case, version)
    assert logits < TOLERANCE
    assert gradients < TOLERANCE


@pytest.mark.parametrize("version", [OLD, NEW])
def test_every_flag_with_a_counterpart_has_a_case(version: str) -> None:
    cases = [case for case in SINGLE.values() if version in case.versions]
    said = {name for case in cases for name in case.our_flags(version)}
    free = WITHOUT_PARITY[version]
    missing = [name for name in sorted(counterparts()) if name not in said and name not in free]
    assert not missing, f"no parity case, and no reason in WITHOUT_PARITY, for {missing}"
    assert set(free) <= counterparts(), "a reason is stale"


@pytest.mark.parametrize(
    "component", [item for item in CATALOGUE if item.select in counterparts()], ids=lambda item: item.name
)
def test_every_selected_component_is_compared(component: Any) -> None:
    """Also flags with two meanings: `attn_flash=True` and `attn_flash=False` select different kernels."""
    pairs = [(case, version) for case in SINGLE.values() for version in case.versions]
    cases = [flags for flags in (case.our_flags(v) for case, v in pairs) if component.select in flags]
    if component.when is not ...:
        cases = [flags for flags in cases if flags[component.select] == component.when]
    compared = cases or component.select in FIXED
    assert compared, f"no parity case selects {component.name} by `{component.select}`"


WRONG: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"ff_swish": True}),
    ({"attn_qk_norm": True}, {"attn_qk_norm_scale": 9.0}),
    ({"alibi_pos_bias": True}, {"alibi_num_heads": 3}),
    ({"rotary_pos_emb": True, "attn_dim_head": 32}, {"rotary_interpolation_factor": 1.1}),
    ({"rel_pos_bias": True}, {"rel_pos_max_distance": 64}),
    ({}, {"attn_add_zero_kv": True}),
]


@pytest.mark.parametrize(("flags", "wrong"), WRONG, ids=lambda value: " ".join(value) or "plain")
def test_a_flag_without_weights_has_an_effect(flags: dict[str, Any], wrong: dict[str, Any]) -> None:
    case = Case(flags, ours=wrong)
    ours = flagformer.build(case.our_flags(NEW)).eval()
    logits, gradients = compare(ours, result(case, NEW), case, NEW)
    assert logits > 100 * TOLERANCE
    assert gradients > 100 * TOLERANCE


LOADED = ["learned positions", "rotary", "tied embedding", "gated values", *WHOLE]


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("name", LOADED)
@pytest.mark.filterwarnings("ignore:.*encoder.to_logits.weight")
def test_weights_and_arguments_build_the_model(name: str, version: str, old_peer: dict[str, Any]) -> None:
    theirs, case = of_peer(version, name, old_peer), CASES[name]
    flags = {"model": case.kind, **case.peer_flags(version)}
    ours = load_x_transformers(theirs["weights"], flags=flags, version=version)
    assert not ours.training
    assert (run(ours, case) - theirs["said"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("version", [OLD, NEW])
def test_the_version_is_read_from_the_weights(version: str, old_peer: dict[str, Any]) -> None:
    for name in ("learned positions", "post norm", "images", "llama", "rms norm", "gated values"):
        weights = of_peer(version, name, old_peer)["weights"]
        if name in ("llama", "rms norm"):
            with pytest.raises(ValueError, match="`version` of x-transformers must be passed"):
                version_of(weights)
        else:
            assert version_of(weights) == version
    if version == NEW:
        case = CASES["rms norm"]
        assert version_of(build_peer(case.kind, case.peer_flags(NEW))) == NEW, (
            "a model's class shows its version"
        )
