"""BERT, RoBERTa, XLM-R, ALBERT, DistilBERT with their heads of masked language models."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import TIED, Size, sizes

BERT = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
ROBERTA = {**TIED, "type_vocab_size": 1, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
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
}
