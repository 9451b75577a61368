"""Tiny random models of transformers that are no decoders: encoders, encoder-decoders, vision models."""

import copy
from dataclasses import dataclass

import torch
from published_models import DIM, HEADS, INNER, LENGTH, PLAIN_SIZES, VOCABULARY, perturbed

ENCODER = {**PLAIN_SIZES, "num_hidden_layers": 2, "intermediate_size": INNER, "layer_norm_eps": 1e-3}
NARROW = {**ENCODER, "embedding_size": 32}
ROBERTA = {**ENCODER, "pad_token_id": 1}
DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": DIM, "n_layers": 2, "n_heads": HEADS, "hidden_dim": INNER,
    "max_position_embeddings": LENGTH,
}  # fmt: skip
EUROBERT = {**PLAIN_SIZES, "intermediate_size": INNER, "num_key_value_heads": 2}
T5 = {
    "vocab_size": VOCABULARY, "d_model": DIM, "d_kv": 8, "num_heads": HEADS, "d_ff": INNER, "num_layers": 2,
    "num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0, "layer_norm_epsilon": 1e-3,
}  # fmt: skip
BART = {
    "vocab_size": VOCABULARY, "d_model": DIM, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": 96, "max_position_embeddings": LENGTH, "decoder_start_token_id": 2,
}  # fmt: skip
MODERNBERT = {
    **{name: ENCODER[name] for name in ENCODER if name not in ("layer_norm_eps", "num_hidden_layers")},
    "num_hidden_layers": 4, "local_attention": 6, "norm_eps": 1e-3, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
DEBERTA = {
    **ENCODER, "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False,
}  # fmt: skip
WHISPER = {
    "vocab_size": VOCABULARY, "num_mel_bins": 8, "d_model": DIM, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": 96, "max_source_positions": 9, "max_target_positions": LENGTH, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "begin_suppress_tokens": None,
}  # fmt: skip
VISION = {
    "hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": INNER,
    "image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-3,
}  # fmt: skip
DINOV2 = {key: value for key, value in VISION.items() if key != "intermediate_size"}
DINOV2["use_mask_token"] = False


@dataclass(frozen=True)
class Case:
    """A model of transformers.

    Attributes:
        cls: the name of its class.
        sizes: arguments of its config class.
    """

    cls: str
    sizes: dict


MASKED = {
    "BERT": Case("BertForMaskedLM", ENCODER),
    "BERT, relu": Case("BertForMaskedLM", {**ENCODER, "hidden_act": "relu"}),
    "RoBERTa": Case("RobertaForMaskedLM", ROBERTA),
    "XLM-R": Case("XLMRobertaForMaskedLM", ROBERTA),
    "ALBERT": Case("AlbertForMaskedLM", NARROW),
    "ELECTRA": Case("ElectraForMaskedLM", NARROW),
    "DistilBERT": Case("DistilBertForMaskedLM", DISTILBERT),
    "EuroBERT": Case("EuroBertForMaskedLM", EUROBERT),
    "CamemBERT": Case("CamembertForMaskedLM", ROBERTA),
    "ModernBERT": Case("ModernBertForMaskedLM", MODERNBERT),
    "ModernBERT, biases": Case(
        "ModernBertForMaskedLM",
        {
            **MODERNBERT,
            "norm_bias": True,
            "classifier_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "decoder_bias": False,
        },
    ),
    "DeBERTa": Case("DebertaV2ForMaskedLM", DEBERTA),
    "DeBERTa, no buckets": Case(
        "DebertaV2ForMaskedLM",
        {
            **DEBERTA,
            "position_buckets": -1,
            "max_relative_positions": 9,
            "norm_rel_ebd": "none",
            "pos_att_type": ["c2p"],
            "position_biased_input": True,
            "type_vocab_size": 2,
        },
    ),
}
ROWS = {
    "BERT, classes": Case("BertForSequenceClassification", {**ENCODER, "num_labels": 5}),
    "RoBERTa, classes": Case("RobertaForSequenceClassification", ROBERTA),
    "XLM-R, classes": Case("XLMRobertaForSequenceClassification", {**ROBERTA, "num_labels": 3}),
    "ALBERT, classes": Case("AlbertForSequenceClassification", {**NARROW, "num_labels": 1}),
}
POOLED = {
    "BERT, pooled": Case("BertModel", ENCODER),
    "RoBERTa, pooled": Case("RobertaModel", ROBERTA),
    "XLM-R, pooled": Case("XLMRobertaModel", ROBERTA),
    "ALBERT, pooled": Case("AlbertModel", NARROW),
}
ROWS |= {
    "ELECTRA, classes": Case("ElectraForSequenceClassification", NARROW),
    "DistilBERT, classes": Case("DistilBertForSequenceClassification", {**DISTILBERT, "num_labels": 3}),
    "DeBERTa, classes": Case("DebertaV2ForSequenceClassification", DEBERTA),
}
ROWS |= POOLED | {"SigLIP, texts": Case("SiglipTextModel", {**ENCODER, "projection_size": 24})}
PAIRS = {
    "T5 v1.0": Case("T5ForConditionalGeneration", T5),
    "T5 v1.1": Case(
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
    ),
    "UL2": Case("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-silu"}),
    "mT5": Case("MT5ForConditionalGeneration", T5),
    "BART": Case("BartForConditionalGeneration", BART),
    "BART, scaled": Case(
        "BartForConditionalGeneration", {**BART, "scale_embedding": True, "activation_function": "relu"}
    ),
    "mBART": Case("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
    "Marian": Case(
        "MarianMTModel", {**BART, "scale_embedding": True, "activation_function": "swish", "pad_token_id": 0}
    ),
    "M2M-100": Case("M2M100ForConditionalGeneration", {**BART, "pad_token_id": 0}),
    "NLLB": Case(
        "M2M100ForConditionalGeneration", {**BART, "scale_embedding": False, "activation_function": "gelu"}
    ),
    "Pegasus": Case("PegasusForConditionalGeneration", {**BART, "scale_embedding": True, "pad_token_id": 0}),
}
IMAGES = {
    "ViT": Case("ViTForImageClassification", {**VISION, "num_labels": 5}),
    "ViT, no biases": Case("ViTForImageClassification", {**VISION, "qkv_bias": False, "image_size": [8, 16]}),
    "DeiT": Case("DeiTForImageClassificationWithTeacher", {**VISION, "num_labels": 5}),
    "DeiT, class token": Case("DeiTForImageClassification", {**VISION, "qkv_bias": False}),
    "DINOv2": Case("Dinov2Model", DINOV2),
    "DINOv2, gated": Case("Dinov2Model", {**DINOV2, "use_swiglu_ffn": True, "mlp_ratio": 2}),
    "CLIP, images": Case("CLIPVisionModel", VISION),
    "SigLIP, images": Case("SiglipVisionModel", {**VISION, "vision_use_head": False}),
}
SPEECH = {"Whisper": Case("WhisperForConditionalGeneration", WHISPER)}
TEXTS = {
    "ModernBERT, tokens": Case("ModernBertModel", MODERNBERT),
    "DeBERTa, tokens": Case("DebertaV2Model", {**DEBERTA, "pos_att_type": ["p2c"]}),
    "CLIP, texts": Case("CLIPTextModel", {**ENCODER, "eos_token_id": 2}),
}
CASES = {**MASKED, **ROWS, **PAIRS, **SPEECH, **IMAGES, **TEXTS}


def config_of(name, changes=None):
    import transformers

    case = CASES[name]
    config = getattr(transformers, case.cls).config_class
    return config(**{**copy.deepcopy(case.sizes), **(changes or {})})


def theirs_of(name, config=None):
    """The model of transformers, with the scales of trained ones."""
    import transformers

    torch.manual_seed(0)
    model = perturbed(getattr(transformers, CASES[name].cls)(config or config_of(name)))
    for part, buffer in model.named_buffers():
        if part == "final_logits_bias":
            buffer.normal_(0, 0.2)
    for module in model.modules():
        if hasattr(module, "create_weight"):  # sines and cosines, which files may leave out
            module.weight.data.copy_(module.create_weight())
    return model


def padded(ids, left, right):
    """(ids, mask) with padding on both sides."""
    rows, length = ids.shape
    mask = torch.zeros(rows, left + length + right, dtype=torch.bool)
    mask[:, left : left + length] = True
    wider = torch.full(mask.shape, 7)
    wider[mask] = ids.flatten()
    return wider, mask


@torch.no_grad()
def want_of(name, model, given):
    """The outputs of transformers."""
    out = model(**given)
    if "logits" in out:
        return out.logits
    return out.pooler_output if name in {*POOLED, "CLIP, images", "SigLIP, texts"} else out.last_hidden_state


def given_of(name):
    """Arguments of their forward."""
    generator = torch.Generator().manual_seed(1)
    if name in IMAGES:
        width = CASES[name].sizes["image_size"]
        height, width = width if isinstance(width, list) else (width, width)
        return {"pixel_values": torch.randn(2, 3, height, width, generator=generator)}
    ids = torch.randint(3, 90, (2, 12), generator=generator)
    ids[ids == 7] = 8  # that of padding, also where a test changes `pad_token_id`: none is in a text
    if name in SPEECH:
        return {"input_features": torch.randn(2, 8, 18, generator=generator), "decoder_input_ids": ids}
    ids, mask = padded(ids, 0, 0 if name == "SigLIP, texts" else 3)  # whose last token may be padding
    given = {"input_ids": ids, "attention_mask": mask.long()}
    if name in PAIRS:
        given["decoder_input_ids"] = ids.flip(1)[:, 3:10]
    return given


@torch.no_grad()
def got_of(name, model, given):
    """Our outputs for the same arguments."""
    if name in IMAGES:
        out = model(given["pixel_values"])
        return out[:, 0] if name == "CLIP, images" else out
    if name in SPEECH:
        context = model.encode(given["input_features"].mT)
        return model.decoder.net(given["decoder_input_ids"], context=context)
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    if name in PAIRS:
        context = model.encode(ids, mask)
        return model.decoder.net(given["decoder_input_ids"], context=context, context_mask=mask)
    return model(ids, mask=mask)


def valid(name, given, out):
    """The outputs of tokens."""
    return out[given["attention_mask"].bool()] if name in {*MASKED, *TEXTS} else out
