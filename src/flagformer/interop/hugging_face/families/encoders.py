"""Encoders: BERT, RoBERTa, XLM-R, ALBERT, ELECTRA, DistilBERT (masked LM and classes of rows), EuroBERT."""

from __future__ import annotations

from dataclasses import replace

from flagformer.interop.hugging_face.families.llama import LLAMA
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    FieldRule,
    Fields,
    Flags,
    activation,
    derived,
    names,
    on,
    under,
)
from flagformer.interop.hugging_face.rope import rope

# Norms follow the residual; a linear layer, an activation and a norm are before the logits.
LAYERS = {
    **on("norm_bias attn_qkv_bias attn_out_bias use_abs_pos_emb post_emb_norm post_emb_norm_bias"),
    "pre_norm": False,
}
MASKED = {**LAYERS, "model": "encoder", "logits_bias": True}
CLASSES_OF_ROWS = {**LAYERS, "model": "classifier", "pooler": True}
HEAD = derived(lambda f: {"attn_dim_head": f["dim"] // f["heads"]})
SIZES: dict[str, FieldRule] = {
    **names("vocab_size num_tokens, hidden_size dim, num_hidden_layers depth, num_attention_heads heads"),
    "intermediate_size": "ff_inner_dim",
    " head": HEAD,
    "max_position_embeddings": Field("max_seq_len", 512),
    "type_vocab_size": Field("num_token_types", 2),
    "layer_norm_eps": Field("norm_eps post_emb_norm_eps head_transform_eps", 1e-12),
    "hidden_act": activation("ff_activation head_transform", "gelu"),
}


def _labels(config: Config, flags: Flags) -> Flags:
    known = config["id2label"] or config["label2id"]
    return {"num_classes": len(known) if known else config["num_labels"] or 2}


def _to_labels(flags: Flags) -> Config:
    words = [f"LABEL_{index}" for index in range(flags["num_classes"])]
    return {
        "id2label": {str(index): word for index, word in enumerate(words)},
        "label2id": {word: index for index, word in enumerate(words)},
    }


LABELS = Fields({"id2label": None, "label2id": None, "num_labels": None}, _labels, _to_labels)
# Fields of a classifier that differ from those of a masked language model.
ROWS: dict[str, FieldRule] = {
    "layer_norm_eps": Field("norm_eps post_emb_norm_eps", 1e-12),
    "hidden_act": activation("ff_activation", "gelu"),
    "id2label": LABELS,
}
TOP = """word_embeddings.weight embed.weight, position_embeddings.weight pos.weight,
    token_type_embeddings.weight types.weight, LayerNorm.{p} embed_norm.{p}"""
LAYER = """attention.self.query.{p} attn.q.{p}, attention.self.key.{p} attn.k.{p},
    attention.self.value.{p} attn.v.{p}, attention.output.dense.{p} attn.o.{p},
    attention.output.LayerNorm.{p} attn.out_norm.{p}, intermediate.dense.{p} ff.up.{p},
    output.dense.{p} ff.down.{p}, output.LayerNorm.{p} ff.out_norm.{p}"""


def body(model: str) -> dict[str, str]:
    """The tensors of the embeddings and the layers."""
    layers = under(f"{model}.encoder.layer.{{i}}.", "layers.{i}.", LAYER)
    return {**under(f"{model}.embeddings.", "", TOP), **layers}


def transform(dense: str, norm: str, bias: str) -> dict[str, str]:
    """The tensors of the head of a masked language model."""
    return {
        dense + ".{p}": "head.transform.dense.{p}",
        norm + ".{p}": "head.transform.norm.{p}",
        bias: "head.bias",
    }


def pooled(table: Family, model: str, architecture: str, pooler: str = "pooler.dense.{p}") -> Family:
    """The table of a class without logits: its output is the pooled vector of a row.

    Args:
        table: of sequence classification.
        model: the prefix of its tensors.
        pooler: the tensors of the pooler in the file.
    """
    kept = {name: rule for name, rule in table.tensors.items() if name.startswith(f"{model}.")}  # type: ignore[union-attr]
    tensors = {name.removeprefix(f"{model}."): rule for name, rule in kept.items()}
    return replace(
        table.but(fields={"id2label": ...}, fixed={"num_classes": None}),
        architecture=architecture,
        tensors={**tensors, pooler: "pooler.dense.{p}"},
        drop=(r"embeddings\.position_ids",),
    )


DROPOUTS = "attention_probs_dropout_prob hidden_dropout_prob gradient_checkpointing mask_token_id layer_types"
ABSOLUTE = {"position_embedding_type": "absolute"}
OLD = {".gamma": ".weight", ".beta": ".bias"}
BERT_CLASSES = Family(
    "bert",
    "BertForSequenceClassification",
    {**SIZES, **ROWS},
    {
        **body("bert"),
        "bert.pooler.dense.{p}": "pooler.dense.{p}",
        "classifier.{p}": "head.{p}",
    },
    fixed=CLASSES_OF_ROWS,
    must=ABSOLUTE,
    inert=DROPOUTS,
    drop=(r"bert\.embeddings\.position_ids",),
    old=OLD,
)
BERT = Family(
    "bert",
    "BertForMaskedLM",
    SIZES,
    {
        **body("bert"),
        **transform(
            "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
        ),
    },
    fixed=MASKED,
    must=ABSOLUTE,
    inert=DROPOUTS,
    tied=("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    drop=(
        r"bert\.pooler\..*",
        r"cls\.seq_relationship\..*",
        r"bert\.embeddings\.position_ids",
        r"cls\.predictions\.decoder\.bias",
    ),
    old=OLD,
    also=("BertForPreTraining",),
    others=(BERT_CLASSES, pooled(BERT_CLASSES, "bert", "BertModel")),
    missing="`BertForTokenClassification` and other heads",
)


def _positions(config: Config, flags: Flags) -> Flags:
    first = config["pad_token_id"] + 1
    return {"abs_pos_emb_offset": first, "max_seq_len": config["max_position_embeddings"] - first}


# Rows of the table; the positions of tokens begin after the row of the padding's id.
START = Fields(
    {"max_position_embeddings": 512, "pad_token_id": 1},
    _positions,
    lambda f: {
        "max_position_embeddings": f["max_seq_len"] + f["abs_pos_emb_offset"],
        "pad_token_id": f["abs_pos_emb_offset"] - 1,
    },
)
GELU_HEAD = {"hidden_act": activation("ff_activation", "gelu")}
ROBERTA_CLASSES = Family(
    "roberta",
    "RobertaForSequenceClassification",
    {**SIZES, "max_position_embeddings": START, **ROWS},
    {**body("roberta"), "classifier.dense.{p}": "pooler.dense.{p}", "classifier.out_proj.{p}": "head.{p}"},
    fixed=CLASSES_OF_ROWS,
    must=ABSOLUTE,
    inert=DROPOUTS,
    drop=(r"roberta\.embeddings\.position_ids", r"roberta\.pooler\..*"),
)
ROBERTA = Family(
    "roberta",
    "RobertaForMaskedLM",
    {**SIZES, "max_position_embeddings": START, **GELU_HEAD},
    {**body("roberta"), **transform("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")},
    fixed={**MASKED, "head_transform": "gelu"},
    must=ABSOLUTE,
    inert=DROPOUTS,
    tied=("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    drop=(r"roberta\.pooler\..*", r"roberta\.embeddings\.position_ids", r"lm_head\.decoder\.bias"),
    others=(ROBERTA_CLASSES, pooled(ROBERTA_CLASSES, "roberta", "RobertaModel")),
    missing="the padding's id inside a text, whose row has position 0 there",
)
XLM_CLASSES = ROBERTA_CLASSES.but(
    model_type="xlm-roberta", architecture="XLMRobertaForSequenceClassification"
)
XLM_ROBERTA = ROBERTA.but(
    model_type="xlm-roberta",
    architecture="XLMRobertaForMaskedLM",
    others=(XLM_CLASSES, pooled(XLM_CLASSES, "roberta", "XLMRobertaModel")),
)
CAMEMBERT_CLASSES = ROBERTA_CLASSES.but(
    model_type="camembert", architecture="CamembertForSequenceClassification"
)
CAMEMBERT = ROBERTA.but(
    model_type="camembert",
    architecture="CamembertForMaskedLM",
    others=(CAMEMBERT_CLASSES, pooled(CAMEMBERT_CLASSES, "roberta", "CamembertModel")),
)
G = "albert.encoder.albert_layer_groups.0.albert_layers.0."
TIED_LAYER = """attention.query.{p} attn.q.{p}, attention.key.{p} attn.k.{p}, attention.value.{p} attn.v.{p},
    attention.dense.{p} attn.o.{p}, attention.LayerNorm.{p} attn.out_norm.{p}, ffn.{p} ff.up.{p},
    ffn_output.{p} ff.down.{p}, full_layer_layer_norm.{p} ff.out_norm.{p}"""
ALBERT_BODY = {
    **under("albert.embeddings.", "", TOP),
    **under(G, "layers.0.", TIED_LAYER),
    "albert.encoder.embedding_hidden_mapping_in.{p}": "embed_project.{p}",
}
ALBERT_SIZES = {**SIZES, "embedding_size": Field("emb_dim", 128)}
GROUPS = {**ABSOLUTE, "num_hidden_groups": 1, "inner_group_num": 1}
ALBERT_INERT = DROPOUTS + " classifier_dropout_prob"
ALBERT_CLASSES = Family(
    "albert",
    "AlbertForSequenceClassification",
    {**ALBERT_SIZES, **ROWS, "hidden_act": activation("ff_activation", "gelu_new")},
    {**ALBERT_BODY, "albert.pooler.{p}": "pooler.dense.{p}", "classifier.{p}": "head.{p}"},
    fixed={**CLASSES_OF_ROWS, "weight_tie_layers": True},
    must=GROUPS,
    inert=ALBERT_INERT,
    drop=(r"albert\.embeddings\.position_ids",),
)
ALBERT = Family(
    "albert",
    "AlbertForMaskedLM",
    {**ALBERT_SIZES, "hidden_act": activation("ff_activation head_transform", "gelu_new")},
    {**ALBERT_BODY, **transform("predictions.dense", "predictions.LayerNorm", "predictions.bias")},
    fixed={**MASKED, "weight_tie_layers": True},
    must=GROUPS,
    inert=ALBERT_INERT,
    tied=("predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    drop=(
        r"albert\.pooler\..*", r"albert\.embeddings\.position_ids", r"predictions\.decoder\.bias",
        r"sop_classifier\..*",
    ),
    also=("AlbertForPreTraining",),
    others=(ALBERT_CLASSES, pooled(ALBERT_CLASSES, "albert", "AlbertModel", "pooler.{p}")),
    missing="several groups of layers; embeddings of the width of the layers",
)  # fmt: skip
ELECTRA_BODY = {**body("electra"), "electra.embeddings_project.{p}": "embed_project.{p}"}
ELECTRA_INERT = DROPOUTS + " summary_type summary_use_proj summary_activation summary_last_dropout"
ELECTRA_CLASSES = Family(
    "electra",
    "ElectraForSequenceClassification",
    {**SIZES, **ROWS, "embedding_size": Field("emb_dim", 128)},
    {**ELECTRA_BODY, "classifier.dense.{p}": "pooler.dense.{p}", "classifier.out_proj.{p}": "head.{p}"},
    fixed={**CLASSES_OF_ROWS, "pooler_activation": "gelu"},
    must=ABSOLUTE,
    inert=ELECTRA_INERT,
    drop=(r"electra\.embeddings\.position_ids",),
)
ELECTRA = Family(
    "electra",
    "ElectraForMaskedLM",
    {**SIZES, "embedding_size": Field("emb_dim", 128), **GELU_HEAD},
    {
        **ELECTRA_BODY,
        **transform(
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
        ),
    },
    fixed={**MASKED, "head_transform": "gelu"},
    must=ABSOLUTE,
    inert=ELECTRA_INERT,
    tied=("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    drop=(r"electra\.embeddings\.position_ids",),
    others=(ELECTRA_CLASSES,),
    missing="the discriminator (a projection and an activation before a logit of each token)",
)
D = "distilbert.transformer.layer.{i}."
DISTIL_LAYER = """attention.q_lin.{p} attn.q.{p}, attention.k_lin.{p} attn.k.{p},
    attention.v_lin.{p} attn.v.{p}, attention.out_lin.{p} attn.o.{p}, sa_layer_norm.{p} attn.out_norm.{p},
    ffn.lin1.{p} ff.up.{p}, ffn.lin2.{p} ff.down.{p}, output_layer_norm.{p} ff.out_norm.{p}"""
EPS = dict.fromkeys(("norm_eps", "post_emb_norm_eps", "head_transform_eps"), 1e-12)
DISTIL_BODY = {
    "distilbert.embeddings.word_embeddings.weight": "embed.weight",
    "distilbert.embeddings.position_embeddings.weight": "pos.weight",
    "distilbert.embeddings.LayerNorm.{p}": "embed_norm.{p}",
    **under(D, "layers.{i}.", DISTIL_LAYER),
}
DISTIL_SIZES: dict[str, FieldRule] = {
    **names("vocab_size num_tokens, dim dim, n_layers depth, n_heads heads, hidden_dim ff_inner_dim"),
    " head": HEAD,
    "max_position_embeddings": Field("max_seq_len", 512),
    "activation": activation("ff_activation", "gelu"),
}
DISTIL_INERT = "dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_"
DISTIL_CLASSES = Family(
    "distilbert",
    "DistilBertForSequenceClassification",
    {**DISTIL_SIZES, "id2label": LABELS},
    {**DISTIL_BODY, "pre_classifier.{p}": "pooler.dense.{p}", "classifier.{p}": "head.{p}"},
    fixed={**CLASSES_OF_ROWS, "norm_eps": 1e-12, "post_emb_norm_eps": 1e-12, "pooler_activation": "relu"},
    inert=DISTIL_INERT,
)
DISTILBERT = Family(
    "distilbert",
    "DistilBertForMaskedLM",
    {**DISTIL_SIZES, "activation": activation("ff_activation head_transform", "gelu")},
    {
        **DISTIL_BODY,
        **transform("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    },
    fixed={**MASKED, **EPS},
    inert=DISTIL_INERT,
    tied=("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    others=(DISTIL_CLASSES,),
)
EUROBERT = LLAMA.but(
    model_type="eurobert",
    architecture="EuroBertForMaskedLM",
    fixed={"model": "encoder"},
    inert="mask_token_id classifier_pooling",
    fields={
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "max_position_embeddings": Field("max_seq_len", 8192),
        "rope_parameters": rope(1e4),
    },
    missing="sequence classification",
)
FAMILIES = [BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ALBERT, ELECTRA, DISTILBERT, EUROBERT]
