"""BERT and its relatives with their heads of masked language models; texts of CLIP and SigLIP."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import TIED, Size, sizes

BERT = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
ROBERTA = {**TIED, "type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
DEBERTA = {
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}  # fmt: skip
ENCODERS: dict[str, Size] = {
    **sizes(
        "bert",
        BERT,
        """
        bert-base-uncased 109514298 30522 768 3072 12 12
        bert-large-uncased 335174458 30522 1024 4096 24 16
        """,
        {**TIED, "architectures": ["BertForMaskedLM"]},
    ),
    **sizes(
        "roberta",
        BERT,
        """
        roberta-base 124697433 50265 768 3072 12 12
        roberta-large 355412057 50265 1024 4096 24 16
        """,
        {**ROBERTA, "architectures": ["RobertaForMaskedLM"]},
    ),
    **sizes(
        "xlm-roberta",
        BERT,
        """
        xlm-roberta-base 278295186 250002 768 3072 12 12
        xlm-roberta-large 560142482 250002 1024 4096 24 16
        """,
        {**ROBERTA, "architectures": ["XLMRobertaForMaskedLM"]},
    ),
    **sizes(
        "albert",
        f"{BERT} embedding_size",
        """
        albert-base-v2 11221680 30000 768 3072 12 12 128
        albert-large-v2 - 30000 1024 4096 24 16 128
        albert-xlarge-v2 - 30000 2048 8192 24 16 128
        """,
        {**TIED, "architectures": ["AlbertForMaskedLM"]},
    ),
    **sizes(
        "distilbert",
        "vocab_size dim hidden_dim n_layers n_heads",
        "distilbert-base-uncased 66985530 30522 768 3072 6 12",
        {**TIED, "architectures": ["DistilBertForMaskedLM"]},
    ),
    **sizes(
        "camembert",
        BERT,
        """
        camembert-base - 32005 768 3072 12 12
        camembert-large - 32005 1024 4096 24 16
        """,
        {**ROBERTA, "architectures": ["CamembertForMaskedLM"]},
    ),
    **sizes(
        "electra",
        f"{BERT} embedding_size",
        """
        electra-small-generator - 30522 256 1024 12 4 128
        electra-base-generator - 30522 256 1024 12 4 768
        electra-large-generator - 30522 256 1024 24 4 1024
        """,
        {**TIED, "architectures": ["ElectraForMaskedLM"]},
    ),
    **sizes(
        "deberta-v2",
        BERT,
        """
        deberta-v3-xsmall 70682112 128100 384 1536 12 6
        deberta-v3-small 141304320 128100 768 3072 6 12
        deberta-v3-base 183831552 128100 768 3072 12 12
        deberta-v3-large 434012160 128100 1024 4096 24 16
        """,
        {**DEBERTA, "architectures": ["DebertaV2Model"]},
    ),
    **sizes(
        "modernbert",
        BERT,
        """
        modernbert-base 149655232 50368 768 1152 22 12
        modernbert-large - 50368 1024 2624 28 16
        """,
        {**TIED, "architectures": ["ModernBertForMaskedLM"]},
    ),
    **sizes(
        "clip_text_model",
        BERT,
        """
        clip-text-base 63165952 49408 512 2048 12 8
        clip-text-large 123060480 49408 768 3072 12 12
        """,
        {"max_position_embeddings": 77},
    ),
    **sizes(
        "siglip_text_model",
        BERT,
        "siglip-text-base - 32000 768 3072 12 12",
        {"max_position_embeddings": 64, "projection_size": 768},
    ),
}
