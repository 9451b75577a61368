"""GPT-2, GPT-Neo, GPT-J, GPT-NeoX and Pythia, OPT, BLOOM, Falcon, MPT, Phi 1 to 2, StableLM, StarCoder 2."""

from __future__ import annotations

from flagformer.interop.hugging_face.sizes.table import LONG, TIED, UNTIED, Size, sizes, theta

NEOX = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
FALCON = "vocab_size hidden_size num_hidden_layers num_attention_heads"


def _alternating(layers: int) -> dict[str, object]:
    """Layers of GPT-Neo, every second one with a window."""
    return {"attention_types": [[["global", "local"], layers // 2]], "window_size": 256, **TIED}


GPT: dict[str, Size] = {
    **sizes(
        "gpt2",
        "vocab_size n_embd n_layer n_head",
        """
        gpt2-small 124439808 50257 768 12 12
        gpt2-medium 354823168 50257 1024 24 16
        gpt2-large 774030080 50257 1280 36 20
        gpt2-xl 1557611200 50257 1600 48 25
        """,
        TIED,
    ),
    **sizes(
        "gpt_neo",
        "vocab_size hidden_size num_layers num_heads",
        "gpt-neo-125m 125198592 50257 768 12 12",
        _alternating(12),
    ),
    **sizes(
        "gpt_neo",
        "vocab_size hidden_size num_layers num_heads",
        "gpt-neo-1.3b 1315575808 50257 2048 24 16",
        _alternating(24),
    ),
    **sizes(
        "gpt_neo",
        "vocab_size hidden_size num_layers num_heads",
        "gpt-neo-2.7b 2651307520 50257 2560 32 20",
        _alternating(32),
    ),
    **sizes(
        "gptj",
        "vocab_size n_embd n_layer n_head rotary_dim",
        "gpt-j-6b 6050882784 50400 4096 28 16 64",
        UNTIED,
    ),
    **sizes(
        "gpt_neox",
        NEOX,
        """
        pythia-70m 70426624 50304 512 2048 6 8
        pythia-160m 162322944 50304 768 3072 12 12
        pythia-410m 405334016 50304 1024 4096 24 16
        pythia-1b 1011781632 50304 2048 8192 16 8
        pythia-1.4b 1414647808 50304 2048 8192 24 16
        pythia-2.8b 2775208960 50304 2560 10240 32 32
        pythia-6.9b 6857302016 50432 4096 16384 32 32
        pythia-12b 11846072320 50688 5120 20480 36 40
        gpt-neox-20b 20554567680 50432 6144 24576 44 64
        """,
        UNTIED,
    ),
    **sizes(
        "opt",
        "vocab_size hidden_size ffn_dim num_hidden_layers num_attention_heads",
        """
        opt-125m 125239296 50272 768 3072 12 12
        opt-1.3b 1315758080 50272 2048 8192 24 32
        opt-2.7b 2651596800 50272 2560 10240 32 32
        opt-6.7b 6658473984 50272 4096 16384 32 32
        opt-13b 12853473280 50272 5120 20480 40 40
        opt-30b 29974540288 50272 7168 28672 48 56
        """,
        TIED,
    ),
    **sizes(
        "bloom",
        "vocab_size hidden_size n_layer n_head",
        """
        bloom-560m 559214592 250880 1024 24 16
        bloom-1b1 1065314304 250880 1536 24 16
        bloom-1b7 1722408960 250880 2048 24 16
        bloom-3b 3002557440 250880 2560 30 32
        bloom-7b1 7069016064 250880 4096 30 32
        bloom-176b 176247271424 250880 14336 70 112
        """,
        TIED,
    ),
    **sizes("falcon", FALCON, "falcon-7b 6921720704 65024 4544 32 71", TIED),
    **sizes(
        "falcon",
        FALCON,
        "falcon-40b 41303293952 65024 8192 60 128",
        {**TIED, "new_decoder_architecture": True, "num_kv_heads": 8},
    ),
    **sizes(
        "falcon",
        FALCON,
        "falcon-rw-1b 1311625216 50304 2048 24 32",
        {**TIED, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    **sizes("mpt", "vocab_size d_model n_layers n_heads", "mpt-7b 6649286656 50432 4096 32 32", TIED),
    **sizes(
        "phi",
        NEOX,
        """
        phi-1 1418270720 51200 2048 8192 24 32
        phi-1.5 1418270720 51200 2048 8192 24 32
        """,
        UNTIED,
    ),
    **sizes(
        "phi",
        NEOX,
        "phi-2 2779683840 51200 2560 10240 32 32",
        {**UNTIED, "partial_rotary_factor": 0.4},
    ),
    **sizes(
        "stablelm",
        LONG,
        "stablelm-3b-4e1t 2795443200 50304 2560 6912 32 32 32 4096",
        UNTIED,
    ),
    **sizes(
        "stablelm",
        LONG,
        "stablelm-2-1.6b 1644515328 100352 2048 5632 24 32 32 4096",
        {**UNTIED, "use_qkv_bias": True},
    ),
    **sizes(
        "starcoder2",
        f"{LONG} sliding_window",
        "starcoder2-3b 3030371328 49152 3072 12288 30 24 2 16384 4096",
        {**TIED, **theta(999999.4420358813)},
    ),
}
