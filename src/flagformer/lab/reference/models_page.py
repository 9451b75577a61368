"""docs/reference/models.md: the families of published models that `flagformer.load` reads."""

from __future__ import annotations

from contextlib import suppress

from flagformer.interop.hugging_face import families
from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.family import INERT, MUST, Family
from flagformer.interop.hugging_face.fields import REQUIRED, Field, as_field
from flagformer.lab.reference.markdown import code, page, table

INTRODUCTION = """# Published models

The families whose directories `flagformer.load` opens and `flagformer.interop.hugging_face.export` writes.
Generated from their tables by `make docs`; do not edit.
[How to load a published model](../how-to-load-published-models.md) has examples.

Each family is tested with tiny random models of transformers 5.24, norms about 1 and biases about 0.2:

- logits differ by less than 1e-4 of their standard deviation (fp32), and padding changes nothing: of
  decoders on the left, of encoders on both sides;
- greedy text of 32 tokens of decoders and encoder-decoders is equal, with and without a cache;
- `export` writes the same names, shapes, dtypes and bits, in fp32 and bf16, and the same `config.json`;
  transformers loads it without missing or unexpected keys;
- each field of the config is changed: a change is refused by name, has no effect on either side, or is
  followed.

A config field that a table does not know is refused by name, and so are quantized files."""
FLAGS = """*Flags* are those that the family always sets or reads from its config, without sizes. A model of
these flags that was built here can be exported too: `export(model, directory, model_type="llama")`."""
SCALING = """`rope_type` may be default, linear, llama3, yarn, dynamic or longrope where the class has it.
Dynamic scaling changes the rates of transformers with the length of a text; here they are those of texts of
at most `max_position_embeddings` tokens."""
NESTED = """A directory of several models, such as CLIP, LLaVA or Gemma 3, has nested configs.
`flagformer.load(directory)` loads the model of `text_config`, and `part="vision"` that of `vision_config`:
its family is that of the nested `model_type`. `export` writes it as a model of its own."""
# (families, parts without a flag)
WITHOUT = (
    ("OLMo hybrid", "other norm positions in layers with a mixer"),
    ("Nemotron-H", "a smallest step of Mamba 2, which transformers 5.24 applies without a cache alone"),
    ("Ministral 3", "a temperature by position together with a rotation"),
    ("Gemma 3n", "embeddings by layer, alternating updates (AltUp), learned augmented residuals (LAuReL)"),
    ("Gemma 4", "embeddings by layer; keys that are values without their norm; widths of heads by layer"),
    ("RWKV 7", "its mixer; transformers 5.24 has no class (`rwkv` there is RWKV 4)"),
    ("ModernBERT with classes", "a norm after the pooler"),
    ("DeBERTa v1, and DeBERTa v2 XL", "projections of relative embeddings; a convolution after a layer"),
    ("BEiT", "a bias by distance in two dimensions, of each layer; a norm after the pooling"),
    ("DINOv2 with classes", "logits of the class token and the mean of patches together"),
    ("SigLIP images with its head", "pooling by attention"),
    ("CLIP as a whole", "two towers and the temperature of their similarities"),
)
SIZES = (
    "model", "num_tokens", "dim", "depth", "heads", "attn_dim_head", "attn_kv_heads", "max_seq_len",
    "ff_inner_dim", "ff_activation", "norm_eps", "emb_dim", "num_classes", "num_token_types",
)  # fmt: skip


def models_page() -> str:
    """The text of the page."""
    types = families().values()
    found = [table for one in types for table in (one, *one.others)]
    rows = [
        [
            code(one.model_type),
            code(one.architecture),
            code(one.kind),
            ", ".join(map(code, _flags(one))),
            one.missing,
        ]
        for one in found
    ]
    heads = ("model type", "class of transformers", "model", "flags", "not covered")
    must = ", ".join(f"`{name}: {value!r}`" for name, value in MUST.items())
    return page(
        INTRODUCTION,
        f"## {len(types)} model types",
        FLAGS,
        table(heads, rows),
        "## Parts of larger models",
        NESTED,
        "## Without a table",
        "Parts of published models for which there is no flag:",
        table(("family", "no flag for"), [list(row) for row in WITHOUT]),
        "## In all families",
        SCALING,
        f"Fields without a part in the function: {', '.join(code(name) for name in sorted(INERT.split()))}.",
        f"Fields that must have one value: {must}.",
    )


def _flags(family: Family) -> list[str]:
    """The flags of a table, without those of sizes."""
    found = dict.fromkeys(family.fixed)
    config = {}
    for name, given in family.fields.items():
        rule = as_field(given)
        if isinstance(rule, Field):
            found |= dict.fromkeys(rule.flags.split())
            if rule.default is REQUIRED:
                config[name] = 8
    with suppress(ConversionError):  # the defaults of other sizes may not fit the small ones
        found |= dict.fromkeys(family.flags_of({**config, **family.must}))
    return [name for name in found if name.removeprefix("enc_").removeprefix("dec_") not in SIZES]
