"""`docs/flags.md`: every slot with its fillers, every flag and what goes with it, conflicts, every pair."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import flagformer
from flagformer.flags import CATALOGUE, LAYER_SCOPES, MODEL_SCOPES, SLOTS, Component, Slot
from flagformer.flags.contracts import contract_of
from flagformer.flags.flag import read_params
from flagformer.presets import PRESETS
from flagformer.reference.cards import card_name
from flagformer.reference.conflicts_page import conflicts_part, pairs_part
from flagformer.reference.entries import Entry, entries
from flagformer.reference.markdown import code, linked, page, table
from flagformer.reference.together_page import together_part
from flagformer.reference.verdicts import verdicts

INTRO = """\
# Flags

Every flag of flagformer {version}. Generated from the catalogue by `make docs`; do not edit.

A model is a set of filled slots. A *selector* fills a slot (`rotary_pos_emb=True`), a *parameter* tunes its
filler (`rotary_emb_dim=16`). `None`, `False` and `0` select nothing, unless the table says so
(`pre_norm=False`). A parameter whose filler is not selected is an error, and so is an unknown name.

- `AttentionLayers`, `Encoder`, `Decoder`, `PrefixDecoder` and `CrossAttender` take the flags of the stack and
  its sublayers; `TransformerWrapper` takes those of the model; `flagformer.build` takes both, and `model`
  ({models}) in place of `causal`.
- *cross*: the flag also has a form for cross-attention only, with `cross_` in front: `cross_attn_kv_heads=2`.
  Without it, `attn_` flags reach self- and cross-attention alike.
- *layers*: a tuple (in files: a list) gives each such sublayer its own value. `attn_` flags count
  self-attention sublayers and cross-attention sublayers apart, flags of the slot `branch` all sublayers.
- A slot of the layers also takes a `Spec`, a class, a module or, where one call is all that is asked, a plain
  function under its own name: `position_bias=Spec(MyBias)`, `activation=torch.tanh`
  (see [Fillers of your own](#fillers-of-your-own)).
"""
FILLERS = """
Derive a class from the contract of the slot, write its methods, and give the class, or a `Spec` with its
parameters. It is built with the arguments of the third column, once for each place that it fills:

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

A class that declares nothing is taken to need what its slot may need: for example, fused kernels do not run a
score of your own. `@component(slot, needs=..., supports=...)` says it more exactly. A module with parameters
that you give ready-made fills one place only. Where a slot asks for one call alone, a plain function serves
too. What does not meet the contract is a `FlagError` at construction.
"""
SCOPES = {
    "model": ("The model", "Filled once, by `TransformerWrapper`."),
    "stack": ("The stack", "Filled once for all layers."),
    "attention": ("Attention", "Filled in every self- and cross-attention sublayer."),
    "feedforward": ("Feedforward", "Filled in every feedforward sublayer."),
    "branch": ("Every sublayer", "Filled in every sublayer of any kind."),
}


def flags_page() -> str:
    """The whole page."""
    from flagformer.wrappers.build import MODELS, WHOLE

    found = verdicts()
    models = ", ".join(f'`"{name}"`' for name in (*MODELS, *WHOLE))
    parts = [INTRO.format(version=flagformer.__version__, models=models).rstrip()]
    for scope, (title, when) in SCOPES.items():
        parts.append(f"## {title}\n\n{when}")
        parts += [_slot(slot) for slot in SLOTS.values() if slot.scope == scope]
    parts.append("## Whole models\n\nModels with flags of their own beside those of their layers.")
    parts += [_whole(kind, cls) for kind, cls in WHOLE.items()]
    return page(*parts, _own_fillers(), _presets(), together_part(), conflicts_part(found), pairs_part(found))


def _own_fillers() -> str:
    rows = []
    for slot in (slot for slot in SLOTS.values() if slot.scope in LAYER_SCOPES):
        contract = contract_of(CATALOGUE, slot.name)
        methods = [code(f"{name}({', '.join(names)})") for name, names in contract.methods.items()]
        beside = [code(name) for name in sorted(contract.names)]
        built = code(f"({', '.join(contract.built)})")
        rows.append((code(slot.name), code(contract.home), built, ", ".join([*methods, *beside])))
    return page(
        "## Fillers of your own",
        FILLERS,
        table(("slot", "derive from", "built as", "methods and attributes"), rows),
    ).rstrip()


def _presets() -> str:
    rows = [
        (code(name), ", ".join(code(f"{flag}={value!r}") for flag, value in flags.items()))
        for name, flags in PRESETS.items()
    ]
    return page(
        "## Presets",
        "`flagformer.presets.preset(name)` gives these flags, to be completed with sizes.",
        table(("preset", "flags"), rows),
    ).rstrip()


def _whole(kind: str, cls: Any) -> str:
    prefixes = [code(part.prefix) for part in cls.parts if part.prefix]
    scopes = ", ".join(sorted(cls.parts[0].scopes, key=list(SCOPES).index))
    inner = f"every flag of {scopes}" + (f", behind {' or '.join(prefixes)}" if prefixes else "")
    left_out = [code(part.prefix + name) for part in cls.parts for name in sorted(part.decided)]
    params = [Entry(param.flag.name, param, "model", ()) for param in read_params(cls)]
    first = (cls.__doc__ or "").splitlines()[0]
    return page(
        f"### `model: {kind}`",
        f"{cls.__name__}. {first} Beside the flags below it takes {inner}, without {', '.join(left_out)}, "
        "which it decides itself.",
        table(("flag", "type", "default", "also", "meaning"), [_flag(entry) for entry in params]),
    ).rstrip()


def _slot(slot: Slot) -> str:
    places = "any number of fillers" if slot.many else "one filler"
    fillers = [_filler(item) for item in CATALOGUE.in_slot(slot.name)]
    owned = [entry for entry in entries(MODEL_SCOPES) if entry.owners[0].slot == slot.name]
    return page(
        f"### `{slot.name}`",
        f"`{slot.contract}`; {places}.",
        table(("filler", "selected by", "paper", "what it is"), fillers) or "No filler in this version.",
        table(("flag", "type", "default", "also", "meaning"), [_flag(entry) for entry in owned]),
    ).rstrip()


def _filler(item: Component) -> tuple[str, ...]:
    card = card_name(item)
    name = f"[{item.name}](papers/{card})" if card else item.name
    return name, _selection(item), linked(item.paper), item.doc


def _selection(item: Component) -> str:
    if item.select is not None:
        return code(item.say())
    return "itself, where it serves" if item.slot == "kernel" else "standard"


def _flag(entry: Entry) -> tuple[str, ...]:
    forms = (["cross"] if entry.crossed else []) + (["layers"] if entry.per_layer else [])
    return code(entry.name), _types(entry), _standard(entry), ", ".join(forms), _meaning(entry)


def _types(entry: Entry) -> str:
    kinds = [kind for kind in entry.kinds if kind is not type(None)]
    return " or ".join(_type(kind) for kind in kinds)


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(code(repr(value)) for value in get_args(kind))
    if get_origin(kind) is tuple:
        return f"tuple of {get_args(kind)[0].__name__}"
    return str(kind.__name__)


def _standard(entry: Entry) -> str:
    if entry.param.required and entry.name not in {item.select for item in entry.owners}:
        return "required"
    return code(entry.param.default) if entry.param.default is not None else ""


def _meaning(entry: Entry) -> str:
    flag = entry.param.flag
    selected = [item for item in entry.owners if item.select == entry.name]
    if selected and not any(param.flag.name == entry.name for item in selected for param in item.params):
        values = [
            f"{item.name} ({code(item.when)})" if item.when is not ... else item.name for item in selected
        ]
        return f"selects {' or '.join(values)}"
    limits = [f"at least {flag.ge:g}"] if flag.ge is not None else []
    limits += [f"below {flag.lt:g}"] if flag.lt is not None else []
    tuned = [item.name for item in entry.owners if item.select not in (None, entry.name)]
    limits += [f"of {' and '.join(tuned)}"] if tuned and len(tuned) == len(entry.owners) else []
    return linked(flag.doc.rstrip(".")) + (f" ({'; '.join(limits)})" if limits else "")
