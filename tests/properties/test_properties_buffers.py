"""A model made, moved or copied in any way computes the same: for every setting of the catalogue.

Tensors outside the state dict are functions of flags, so that uninitialised memory is never read.
"""

import copy
import io
import pickle
from contextlib import contextmanager

import pytest
import torch
from property_settings import one_block
from test_properties_singles import together
from test_properties_storage import WHOLE, outputs

import flagformer


@pytest.fixture(autouse=True)
def unfilled_memory_is_nan():
    """`torch.empty` and `to_empty` give NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)  # `fill_uninitialized_memory` is on by default
    yield
    torch.use_deterministic_algorithms(False)


def small():
    """(names, flags of one block) of every setting, as a module is made in the same way next to others: a
    second block too."""
    return [(", ".join(names), one_block(flags)) for names, flags in together()]


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def on_meta(flags):
    with torch.device("meta"):
        return flagformer.build(flags).eval()


def emptied(model, flags):
    made = on_meta(flags).to_empty(device="cpu")
    made.load_state_dict(model.state_dict())
    return made


def assigned(model, flags):
    made = on_meta(flags)
    made.load_state_dict(model.state_dict(), assign=True)
    return made


def materialised(model, flags):
    """As a class that builds on meta, loads a file and fills no other buffer, like transformers 5."""
    made = on_meta(flags)
    for module in made.modules():
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
    made.load_state_dict(model.state_dict(), assign=True)
    return made


def unpickled(model, flags):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model, flags):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def copied_after_use(model, flags):
    outputs(model)
    return copy.deepcopy(model)


def widened_and_back(model, flags):
    return copy.deepcopy(model).double().float()


def built_in_fp64(model, flags):
    """A model whose parameters are cast to fp32."""
    with default_dtype(torch.float64):
        made = flagformer.build(flags).eval()
    made.load_state_dict(model.state_dict())
    return made.float()


WAYS = [
    emptied, assigned, materialised, unpickled, saved_whole, copied_after_use, widened_and_back,
    built_in_fp64,
]  # fmt: skip


@torch.no_grad()
def test_a_model_made_in_another_way_computes_the_same():
    wrong = []
    for name, flags in small():
        torch.manual_seed(1)
        model = flagformer.build(flags).eval()
        want = outputs(copy.deepcopy(model))
        for way in WAYS:
            try:
                got = outputs(way(model, flags))
            except Exception as error:
                wrong.append(f"{name}, {way.__name__}: {type(error).__name__}: {error}")
                continue
            if not torch.equal(got, want):
                wrong.append(f"{name}, {way.__name__}: {(got - want).abs().max()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_built_in_half_precision_equals_a_cast_one(dtype):
    """Built and called under a half-precision default dtype: dtypes and logits of a cast model."""
    wrong = []
    for name, flags in small():
        torch.manual_seed(1)
        model = flagformer.build(flags).eval()
        with default_dtype(dtype):
            early = flagformer.build(flags).eval()
        early.load_state_dict(model.state_dict())
        late = model.to(dtype)
        state = late.state_dict()
        wrong += [
            f"{name}: {key} is {value.dtype}"
            for key, value in early.state_dict().items()
            if value.dtype != state[key].dtype
        ]
        want = outputs(late)
        with default_dtype(dtype):
            got = outputs(early)
        if got.dtype != want.dtype or not torch.equal(got, want):
            wrong.append(f"{name}: logits {got.dtype}, {want.dtype}, {(got - want).abs().max()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_models_build_on_meta(kind):
    flags = {"model": kind, **WHOLE[kind]}
    model = flagformer.build(flags)
    for way in (emptied, assigned, materialised):
        made = way(model, flags)
        mine, theirs = model.state_dict(), made.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert not hidden(made)


def hidden(model):
    """Tensors of a model outside its state dict."""
    in_state = {id(value) for value in model.state_dict(keep_vars=True).values()}
    names = [name for name, value in model.named_buffers() if id(value) not in in_state]
    for name, module in model.named_modules():
        names += [f"{name}.{key}" for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
    return names


def test_a_state_dict_has_all_tensors_of_a_model():
    found = {name: hidden(flagformer.build(flags)) for name, flags in small()}
    assert not {name: names for name, names in found.items() if names}
