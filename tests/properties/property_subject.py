"""A tiny model of some flags, with inputs, in fp64: the subject of every property."""

import copy
from functools import cached_property

import torch

import flagformer

# fp64 rounding is below 1e-12 in models of this size; planted faults change logits by more than 1e-4.
TIGHT = 1e-9


class Subject:
    """A model in eval mode with perturbed parameters: none starts at zero, no two are equal.

    Args:
        flags: complete flags for `flagformer.build`.
        dtype: of the parameters and the context.

    Attributes:
        logits: of `ids`, from the first forward.
    """

    def __init__(self, flags, dtype=torch.float64):
        torch.manual_seed(1)
        self.flags, self.dtype = flags, dtype
        self.model = perturb(flagformer.build(flags).to(dtype).eval())
        self.kind = flags.get("model", "decoder")
        self.ids = torch.randint(self.model.num_tokens, (2, 9))
        layers = self.model.attn_layers
        width = layers.dims.dim_context or layers.dims.dim
        given = layers.has_cross and not self.model.num_memory_slots
        self.context = torch.randn(2, 5, width, dtype=dtype) if given else None
        size = getattr(layers, "condition_dim", None)
        self.condition = None if size is None else torch.randn(2, size, dtype=dtype)

    @property
    def has_cross(self):
        return self.context is not None

    @cached_property
    def logits(self):
        return self(self.ids)

    @cached_property
    def lowered(self):
        """A copy in fp32, which `lower` casts further."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        return other.lower(torch.float32)

    def lower(self, dtype):
        """Cast the parameters and the context in place."""
        self.dtype, self.model = dtype, self.model.to(dtype)
        self.context = None if self.context is None else self.context.to(dtype)
        self.condition = None if self.condition is None else self.condition.to(dtype)
        return self

    def side(self, *rows):
        """The context and the condition of these rows of the inputs, as keywords of a forward."""
        return {**({"context": self.context[list(rows)]} if self.has_cross else {}), **self.later(*rows)}

    def later(self, *rows):
        """The condition of these rows, as keywords of a forward that continues a decode state."""
        return {} if self.condition is None else {"condition": self.condition[list(rows)]}

    def __call__(self, ids, *rows, **keywords):
        """Logits without gradient; `rows` are the rows of the context for the ids."""
        with torch.no_grad():
            return self.model(ids, **self.side(*(rows or range(len(ids)))), **keywords)

    def loss(self):
        """A scalar that every logit changes; of two segments if the first writes slots."""
        if self.model.num_memory_slots:
            given = self.later(0, 1)
            _, mems = self.model(self.ids[:, :5], return_mems=True, detach_mems=False, **given)
            logits = self.model(self.ids[:, 5:], mems=mems, **given)
        else:
            logits = self.model(self.ids, **self.side(0, 1))
        weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        return (logits * weights.cos()).sum()


def built_or_refused(flags):
    """(the subject, None), or (None, the text of the FlagError)."""
    try:
        return Subject(flags), None
    except flagformer.FlagError as error:
        return None, str(error)


def refusal(flags):
    """The text of the FlagError, or None if the flags build."""
    try:
        flagformer.check(flags)
    except flagformer.FlagError as error:
        return str(error)
    return None


def perturb(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise.to(parameter.dtype))
    return model


def same(got, want, what, tolerance=TIGHT):
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)} is not {list(want.shape)}"
    worst = (got - want).abs().max().item()
    assert worst <= tolerance, f"{what}: differs by {worst:.2g}"


def differ(got, want, what):
    """The opposite test: a change with an effect is detected."""
    worst = (got - want).abs().max().item()
    assert worst > 1e-6, f"{what}: nothing changed"
