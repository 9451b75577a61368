"""`docs/flags.md`: slots and their components, flags, supported features, conflicts, pairs."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import flagformer
from flagformer.flags import ANY, CATALOGUE, MODEL_SCOPES, SLOTS, Component, Slot, open_slots
from flagformer.flags.contracts import contract_of
from flagformer.flags.flag import read_params
from flagformer.lab.reference.cards import card_name
from flagformer.lab.reference.conflicts_page import conflicts_part, pairs_part
from flagformer.lab.reference.entries import Entry, entries
from flagformer.lab.reference.markdown import code, linked, page, table
from flagformer.lab.reference.together_page import together_part
from flagformer.lab.reference.verdicts import verdicts
from flagformer.presets import PRESETS

INTRO = """\
# Flags

Every flag of flagformer {version}. Generated from the catalogue by `make docs`; do not edit.

A model consists of slots that are filled with components. A *selector* chooses the component of a slot
(`rotary_pos_emb=True`), a *parameter* configures it (`rotary_emb_dim=16`). `None`, `False` and `0` select
nothing, except where the table lists them (`pre_norm=False`). A parameter of a component that is not selected
is an error, and so is an unknown name.

- `AttentionLayers`, `Encoder`, `Decoder`, `PrefixDecoder` and `CrossAttender` take the flags of the stack and
  its sublayers; `TransformerWrapper` takes those of the model; `flagformer.build` takes both, and `model`
  ({models}) in place of `causal`.
- *cross*: the flag also has a form for cross-attention only, with the prefix `cross_`:
  `cross_attn_kv_heads=2`. Without that form, `attn_` flags apply to both self- and cross-attention.
- *layers*: a tuple (in files: a list) sets one value per sublayer. `attn_` flags count self-attention and
  cross-attention sublayers separately, flags of the slots `branch` and `input_mixer` count all sublayers.
  `None` leaves a layer as it is without the flag.
- A slot also takes a `Spec`, a class, a module or, where the contract is a single call, a plain
  function under its own name: `position_bias=Spec(MyBias)`, `activation=torch.tanh`
  (see [Your own components](#your-own-components)).
- In files, a component of your own is an import path, or a mapping with `class` and its parameters:
  `norm: "mylab.norms:MyNorm"`, `norm: {{class: "mylab.norms:MyNorm", eps: 1e-3}}`
  (see [How to use your own class](how-to-add-a-component.md#your-own-class-in-files-and-studies)).
- Slots of attention, feedforward and every sublayer also take a list with one component per sublayer:
  `activation=[torch.tanh, None]`; `None` is the component that the flags select. In a slot of several
  components, a flat list is for every layer, and a list of lists is by layer: `gate=[[MyGate], []]`.
"""
OWN_COMPONENTS = """
Derive a class from the contract of the slot, implement its methods, and pass the class, or a `Spec` with its
parameters. It is built with the arguments of the third column, once for each slot that it fills:

```python
import torch
from flagformer import Decoder, Spec
from flagformer.norm import Norm


class MeanNorm(Norm):
    def __init__(self, dim, *, eps=1e-6):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


layers = Decoder(dim=64, depth=2, norm=Spec(MeanNorm, {"eps": 1e-5}))
```

A class without a declaration is taken to have all needs of its slot: for example, a score modification of
your own is never run by a fused kernel. Declare its needs, and the needs of others that it cannot serve, with
`@component(slot, needs=..., lacks=...)`.
A component of a sublayer, or a norm, whose constructor has a parameter `place` receives a `flagformer.Place`:
its `layer`, counted among the sublayers of its kind in the order in which they run, and `num_layers`.
A module with parameters that you pass as an instance can fill one slot only, as its parameters would be
shared. Slots of the model (`head`, `absolute`, ...) are filled in a `TransformerWrapper`, in
`flagformer.build` and, after `enc_` or `dec_`, in each half of an encoder-decoder, which fixes some of them.
A component that does not meet the contract raises a `FlagError` at construction.
"""
SCOPES = {
    "model": ("The model", "Filled once, by `TransformerWrapper`."),
    "stack": ("The stack", "Filled once for all layers."),
    "attention": ("Attention", "Filled in every self- and cross-attention sublayer."),
    "mixer": ("Mixers", "Filled in every sublayer that `mixer` or 'm' in `custom_layers` makes a mixer."),
    "feedforward": ("Feedforward", "Filled in every feedforward sublayer."),
    "branch": ("Every sublayer", "Filled in every sublayer of any kind."),
}


def flags_page() -> str:
    """Return the text of the page."""
    from flagformer.models.build import MODELS, ROUTING, WHOLE

    found = verdicts()
    models = ", ".join(f'`"{name}"`' for name in (*MODELS, *WHOLE, *ROUTING))
    parts = [INTRO.format(version=flagformer.__version__, models=models).rstrip()]
    for scope, (title, when) in SCOPES.items():
        parts.append(f"## {title}\n\n{when}")
        parts += [_slot(slot) for slot in SLOTS.values() if slot.scope == scope]
    parts.append("## Whole models\n\nModels with flags of their own, in addition to those of their layers.")
    parts += [_whole(kind, cls) for kind, cls in WHOLE.items()]
    parts += [_routing(kind, cls) for kind, cls in ROUTING.items()]
    return page(
        *parts, _own_components(), _presets(), together_part(), conflicts_part(found), pairs_part(found)
    )


def _own_components() -> str:
    rows = []
    for slot in open_slots(MODEL_SCOPES):
        contract = contract_of(CATALOGUE, slot.name)
        methods = [code(f"{name}({', '.join(names)})") for name, names in contract.methods.items()]
        attributes = [code(name) for name in sorted(contract.names)]
        built = code(f"({', '.join(contract.built)})")
        rows.append((code(slot.name), code(contract.home), built, ", ".join([*methods, *attributes])))
    return page(
        "## Your own components",
        OWN_COMPONENTS,
        table(("slot", "derive from", "built as", "methods and attributes"), rows),
    ).rstrip()


def _presets() -> str:
    rows = [
        (code(name), ", ".join(code(f"{flag}={value!r}") for flag, value in flags.items()))
        for name, flags in PRESETS.items()
    ]
    return page(
        "## Presets",
        "`flagformer.presets.preset(name)` returns these flags; add the sizes of the model. It also returns"
        " the flags of published models with their sizes, such as `llama-3.2-1b`: `flagformer presets` lists"
        " them.",
        table(("preset", "flags"), rows),
    ).rstrip()


def _whole(kind: str, cls: Any) -> str:
    prefixes = [code(part.prefix) for part in cls.parts if part.prefix]
    scopes = ", ".join(sorted(cls.parts[0].scopes, key=list(SCOPES).index))
    inner = f"every flag of {scopes}" + (f", with the prefix {' or '.join(prefixes)}" if prefixes else "")
    left_out = [code(part.prefix + name) for part in cls.parts for name in sorted(part.decided)]
    params = [Entry(param.flag.name, param, "model", ()) for param in read_params(cls)]
    first = (cls.__doc__ or "").splitlines()[0]
    return page(
        f"### `model: {kind}`",
        f"{cls.__name__}. {first} It takes the flags below and {inner}, except "
        f"{', '.join(left_out)}, which it sets itself.",
        table(("flag", "type", "default", "also", "meaning"), [_flag(entry) for entry in params]),
    ).rstrip()


def _routing(kind: str, cls: Any) -> str:
    first = (cls.__doc__ or "").splitlines()[0]
    halves = ", each after `enc_` or `dec_`" if kind == "routing_encdec" else ""
    return page(
        f"### `model: {kind}`",
        f"{cls.__name__}. {first} It takes the arguments of routing-transformer and all flags of a decoder"
        f"{halves}; [routing](papers/routing.md) lists them.",
    ).rstrip()


def _slot(slot: Slot) -> str:
    count = "any number of components" if slot.many else "one component"
    rows = [_component(item) for item in CATALOGUE.in_slot(slot.name)]
    owned = [entry for entry in entries(MODEL_SCOPES) if entry.owners[0].slot == slot.name]
    return page(
        f"### `{slot.name}`",
        f"`{slot.contract}`; {count}.",
        table(("component", "selected by", "paper", "description"), rows) or "No component in this version.",
        table(("flag", "type", "default", "also", "meaning"), [_flag(entry) for entry in owned]),
    ).rstrip()


def _component(item: Component) -> tuple[str, ...]:
    card = card_name(item)
    name = f"[{item.name}](papers/{card})" if card else item.name
    return name, _selection(item), linked(item.paper), item.doc


def _selection(item: Component) -> str:
    if item.select is not None:
        return code(item.say())
    return "automatic" if item.slot == "kernel" else "default"


def _flag(entry: Entry) -> tuple[str, ...]:
    forms = (["cross"] if entry.crossed else []) + (["layers"] if entry.per_layer else [])
    return code(entry.name), _types(entry), _default(entry), ", ".join(forms), _meaning(entry)


def _types(entry: Entry) -> str:
    kinds = [kind for kind in entry.kinds if kind is not type(None)]
    return " or ".join(_type(kind) for kind in kinds)


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(code(repr(value)) for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"tuple of {get_args(kind)[0].__name__}"
    return str(kind.__name__)


def _default(entry: Entry) -> str:
    if entry.param.required and entry.name not in {item.select for item in entry.owners}:
        return "required"
    return code(entry.param.default) if entry.param.default is not None else ""


def _meaning(entry: Entry) -> str:
    flag = entry.param.flag
    selected = [item for item in entry.owners if item.select == entry.name]
    if selected and not any(param.flag.name == entry.name for item in selected for param in item.params):
        values = [
            f"{item.name} ({code(item.when)})" if item.when is not ANY else item.name for item in selected
        ]
        return f"selects {' or '.join(values)}"
    limits = [f"at least {flag.ge:g}"] if flag.ge is not None else []
    limits += [f"below {flag.lt:g}"] if flag.lt is not None else []
    names = [item.name for item in entry.owners if item.select not in (None, entry.name)]
    limits += [f"of {' and '.join(names)}"] if names and len(names) == len(entry.owners) else []
    return linked(flag.doc.rstrip(".")) + (f" ({'; '.join(limits)})" if limits else "")
