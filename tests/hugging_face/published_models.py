"""Tiny random models of transformers, one or several of each family, and their directories."""

import copy
import json
import os
from dataclasses import dataclass

import torch
from torch import nn

import flagformer

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

VOCABULARY, DIM, LAYERS, HEADS, GROUPS, INNER, LENGTH = 97, 64, 4, 4, 2, 128, 64
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "num_key_value_heads": GROUPS, "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False, **TOKENS,
}  # fmt: skip
WITHOUT_WIDTH = {name: value for name, value in COMMON.items() if name != "intermediate_size"}
TIED = {**COMMON, "tie_word_embeddings": True}
ORIGINAL = {"original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "rope_theta": 5e5, **ORIGINAL,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, **ORIGINAL}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
BY_KIND = {"full_attention": YARN, "sliding_attention": PLAIN}
ALTERNATE = ["sliding_attention", "full_attention"] * 2
GEMMA = {"head_dim": 16, "sliding_window": 8}
MULTIPLIERS = {
    "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    **COMMON, "num_key_value_heads": HEADS, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
SMALL_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LENGTH,
    **TOKENS,
}  # fmt: skip
PLAIN_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH, **TOKENS,
}  # fmt: skip
FALCON = {name: COMMON[name] for name in COMMON if name not in ("intermediate_size", "num_key_value_heads")}
MPT = {
    "vocab_size": VOCABULARY, "d_model": DIM, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": LENGTH,
    **TOKENS,
}  # fmt: skip
LINEAR_SIZES = {
    "head_dim": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}  # fmt: skip
MAMBA2 = {
    "vocab_size": VOCABULARY, "hidden_size": DIM, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16,
    "state_size": 12, "n_groups": 2, **TOKENS,
}  # fmt: skip
FALCON_H1 = {
    **COMMON, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 12,
}  # fmt: skip
FALCON_H1_MULTIPLIERS = {
    "embedding_multiplier": 5.0, "lm_head_multiplier": 0.1, "mlp_multipliers": [0.6, 0.4],
    "key_multiplier": 0.5, "attention_in_multiplier": 0.8, "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.3, "ssm_multipliers": [0.4, 0.9, 0.3, 0.5, 0.6],
}  # fmt: skip
LLAMA4 = {
    **COMMON, "intermediate_size": 48, "intermediate_size_mlp": INNER, "num_local_experts": 4,
    "interleave_moe_layer_step": 2, "head_dim": 16, "attention_chunk_size": 8, "floor_scale": 4,
    "attn_scale": 0.7,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip
BLOOM = {"vocab_size": VOCABULARY, "n_layer": LAYERS, **TOKENS}


@dataclass(frozen=True)
class Case:
    """A model of transformers.

    Attributes:
        config: the name of its config class.
        sizes: arguments of that class.
        attention: the implementation of attention to compare with.
    """

    config: str
    sizes: dict
    attention: str = "sdpa"


CASES = {
    "Pythia": Case("GPTNeoXConfig", {**PLAIN_SIZES, "intermediate_size": INNER}),
    "GPT-NeoX, one after another": Case(
        "GPTNeoXConfig",
        {**PLAIN_SIZES, "intermediate_size": INNER, "use_parallel_residual": False, "attention_bias": False},
    ),
    "GPT-J": Case("GPTJConfig", {**SMALL_GPT2, "rotary_dim": 8}),
    "Phi": Case("PhiConfig", COMMON),
    "Phi, norms of heads": Case("PhiConfig", {**COMMON, "qk_layernorm": True}),
    "Cohere": Case("CohereConfig", {**TIED, "logit_scale": 0.5, "attention_bias": True}),
    "Cohere, norms of heads": Case("CohereConfig", {**TIED, "logit_scale": 0.5, "use_qk_norm": True}),
    "Cohere 2": Case("Cohere2Config", {**TIED, "logit_scale": 0.5, "sliding_window": 8}),
    "Falcon 7B": Case("FalconConfig", {**FALCON, "tie_word_embeddings": True}),
    "Falcon 40B": Case(
        "FalconConfig", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": GROUPS, "bias": True}
    ),
    "Falcon 2": Case(
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": GROUPS, "num_ln_in_parallel_attn": 1},
    ),
    "MPT": Case("MptConfig", MPT, "eager"),
    "MPT, 6 heads": Case(
        "MptConfig", {**MPT, "n_heads": 6, "d_model": 96, "attn_config": {"softmax_scale": 0.3}}, "eager"
    ),
    "Persimmon": Case("PersimmonConfig", {**PLAIN_SIZES, "intermediate_size": INNER}),
    "Apertus": Case("ApertusConfig", {**COMMON, "rope_parameters": LLAMA3}),
    "StableLM 2": Case("StableLmConfig", {**COMMON, "use_parallel_residual": True}),
    "LFM2": Case("Lfm2Config", {**TIED, "intermediate_size": 200, "block_multiple_of": 16,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    "Qwen 3 Next": Case(
        "Qwen3NextConfig", {**COMMON, **EXPERTS, **LINEAR_SIZES, "shared_expert_intermediate_size": 48}
    ),
    "Qwen 3.5": Case("Qwen3_5TextConfig", {**COMMON, **LINEAR_SIZES, "rms_norm_eps": 1e-5}),
    "Qwen 3.5 MoE": Case(
        "Qwen3_5MoeTextConfig",
        {**WITHOUT_WIDTH, **EXPERTS, **LINEAR_SIZES, "shared_expert_intermediate_size": 48},
    ),
    "Mamba 2": Case("Mamba2Config", MAMBA2, "eager"),
    "Falcon-H1": Case("FalconH1Config", {**FALCON_H1, **FALCON_H1_MULTIPLIERS}),
    "Falcon-H1, norm": Case(
        "FalconH1Config", {**FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False}
    ),
    "Llama 4": Case("Llama4TextConfig", LLAMA4),
    "HunYuan": Case("HunYuanDenseV1Config", {**COMMON, "head_dim": 16}),
    "HunYuan, alpha": Case(
        "HunYuanDenseV1Config",
        {**COMMON, "head_dim": 16, "rope_parameters": {**DYNAMIC, "alpha": 1000.0}},
    ),
    "OLMo": Case("OlmoConfig", {**COMMON, "clip_qkv": 0.8}),
    "Falcon RW": Case(
        "FalconConfig",
        {**FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "Llama 2": Case("LlamaConfig", {**COMMON, "rms_norm_eps": 1e-5}),
    "Llama 3.2": Case("LlamaConfig", {**TIED, "rms_norm_eps": 1e-5, "rope_parameters": LLAMA3}),
    "Llama, biases": Case(
        "LlamaConfig", {**COMMON, "attention_bias": True, "mlp_bias": True, "head_dim": 32}
    ),
    "Llama, yarn": Case("LlamaConfig", {**COMMON, "rope_parameters": YARN}),
    "Llama, linear": Case("LlamaConfig", {**COMMON, "rope_parameters": LINEAR}),
    "Llama, dynamic": Case("LlamaConfig", {**COMMON, "rope_parameters": DYNAMIC}),
    "Mistral": Case("MistralConfig", {**COMMON, "sliding_window": 8}),
    "Qwen 2": Case("Qwen2Config", COMMON),
    "Qwen 2, windows": Case("Qwen2Config", {**COMMON, **WINDOWS, "max_window_layers": 2}),
    "Qwen 3": Case("Qwen3Config", {**TIED, "head_dim": 32}),
    "OLMo 2": Case("Olmo2Config", COMMON),
    "OLMo 3": Case("Olmo3Config", {**COMMON, "sliding_window": 8}),
    "OLMo 3, yarn": Case("Olmo3Config", {**COMMON, "sliding_window": 8, "rope_parameters": BY_KIND}),
    "SmolLM 3": Case("SmolLM3Config", COMMON),
    "Granite": Case("GraniteConfig", {**COMMON, **MULTIPLIERS}),
    "Phi 3": Case("Phi3Config", COMMON),
    "Phi 3, long": Case(
        "Phi3Config", {**COMMON, "rope_parameters": LONGROPE, "original_max_position_embeddings": 6}
    ),
    "Phi 3, short": Case(
        "Phi3Config", {**COMMON, "rope_parameters": LONGROPE, "original_max_position_embeddings": 56}
    ),
    "Gemma": Case("GemmaConfig", {**TIED, "head_dim": 16}, "eager"),
    "Gemma 2": Case("Gemma2Config", {**TIED, **GEMMA, "query_pre_attn_scalar": 32}, "eager"),
    "Gemma 3": Case("Gemma3TextConfig", {**TIED, **GEMMA, "layer_types": ALTERNATE}, "eager"),
    "Mixtral": Case("MixtralConfig", {**COMMON, "num_local_experts": 4, "rope_parameters": PLAIN}),
    "Qwen 2 MoE": Case("Qwen2MoeConfig", {**COMMON, **EXPERTS, "shared_expert_intermediate_size": 48}),
    "Qwen 3 MoE": Case("Qwen3MoeConfig", {**COMMON, **EXPERTS, "head_dim": 16, "mlp_only_layers": [1]}),
    "OLMoE": Case("OlmoeConfig", {**COMMON, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": Case(
        "GptOssConfig",
        {**COMMON, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 8},
        "eager",
    ),
    "DeepSeek V3": Case("DeepseekV3Config", {**LATENT, "n_group": 4, "topk_group": 2}),
    "DeepSeek V3, yarn": Case(
        "DeepseekV3Config",
        {
            **LATENT, "n_group": 1, "topk_group": 1, "q_lora_rank": None, "attention_bias": True,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "DeepSeek V2": Case("DeepseekV2Config", LATENT),
    "GPT-2": Case("GPT2Config", SMALL_GPT2),
    "GPT-BigCode": Case("GPTBigCodeConfig", SMALL_GPT2),
    "GPT-Neo": Case(
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": DIM, "num_layers": LAYERS, "num_heads": HEADS,
            "max_position_embeddings": LENGTH, "attention_types": [[["global", "local"], 2]],
            "window_size": 8, **TOKENS,
        },
        "eager",
    ),
    "OPT": Case("OPTConfig", {**PLAIN_SIZES, "ffn_dim": INNER}),
    "BLOOM": Case("BloomConfig", {**BLOOM, "n_head": HEADS, "hidden_size": DIM}, "eager"),
    "BLOOM, 6 heads": Case("BloomConfig", {**BLOOM, "n_head": 6, "hidden_size": 96}, "eager"),
    "StarCoder 2": Case("Starcoder2Config", COMMON),
    "StableLM": Case("StableLmConfig", COMMON),
    "StableLM, norms of heads": Case("StableLmConfig", {**COMMON, "qk_layernorm": True}),
    "Nemotron": Case("NemotronConfig", COMMON),
    "Helium": Case("HeliumConfig", {**COMMON, "head_dim": 16}),
    "GLM": Case("GlmConfig", {**COMMON, "head_dim": 16}),
    "GLM-4": Case("Glm4Config", {**COMMON, "head_dim": 16}),
    "ERNIE 4.5": Case("Ernie4_5Config", {**COMMON, "head_dim": 16, "use_bias": True}),
    "Seed-OSS": Case("SeedOssConfig", {**COMMON, "head_dim": 16}),
    "Arcee": Case("ArceeConfig", COMMON),
    "Ministral": Case("MinistralConfig", {**COMMON, **GEMMA, "layer_types": ALTERNATE}),
    "CWM": Case("CwmConfig", {**COMMON, "head_dim": 16, "sliding_window": 8}),
    "EXAONE 4": Case("Exaone4Config", {**COMMON, "sliding_window": 8}),
    "Granite MoE": Case("GraniteMoeConfig", {**COMMON, **MULTIPLIERS, "num_local_experts": 4}),
    "MiniMax M2": Case("MiniMaxM2Config", {**COMMON, "head_dim": 16, "num_local_experts": 4,
        "num_experts_per_tok": 2, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "VaultGemma": Case("VaultGemmaConfig", {**TIED, **GEMMA, "query_pre_attn_scalar": 32}, "eager"),
}  # fmt: skip
# One case of each family, for tests of its table.
BASE = (
    "Pythia", "GPT-J", "Phi", "Cohere", "Cohere 2", "Falcon 7B", "Falcon 40B", "Falcon RW",
    "MPT", "Persimmon", "Apertus", "LFM2", "Qwen 3 Next", "Qwen 3.5", "Qwen 3.5 MoE", "Mamba 2", "Falcon-H1",
    "Llama 4", "HunYuan", "OLMo",
    "Llama 3.2", "Mistral", "Qwen 2, windows", "Qwen 3", "OLMo 2", "OLMo 3", "SmolLM 3", "Granite", "Phi 3",
    "Gemma", "Gemma 2", "Gemma 3", "Mixtral", "Qwen 2 MoE", "Qwen 3 MoE", "OLMoE", "gpt-oss", "DeepSeek V3",
    "DeepSeek V2", "GPT-2", "OPT", "BLOOM", "StarCoder 2", "StableLM", "Nemotron",
    "Helium", "GLM", "GLM-4", "ERNIE 4.5", "Seed-OSS", "Arcee", "Ministral", "CWM", "EXAONE 4", "Granite MoE",
    "MiniMax M2", "VaultGemma", "GPT-BigCode", "GPT-Neo",
)  # fmt: skip


def config_of(name, changes=None):
    import transformers

    case = CASES[name]
    return getattr(transformers, case.config)(**{**copy.deepcopy(case.sizes), **(changes or {})})


def theirs_of(name, config=None):
    """The model of transformers, with the scales of trained ones."""
    import transformers

    config = config or config_of(name)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=CASES[name].attention)
    return perturbed(model)


@torch.no_grad()
def perturbed(model):
    """Norms about 1, biases about 0.2, matrices that keep the scale of their inputs."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            parameter.normal_(0, 0.05)
        elif parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        elif name.endswith("weight") and ("norm" in name.lower() or "ln_" in name):
            parameter.normal_(0, 0.2).add_(1.0)
        else:
            parameter.normal_(0, 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.2)
    return model.eval()


def saved_and_loaded(theirs, tmp_path_factory):
    """(their model, its directory, ours)."""
    directory = tmp_path_factory.mktemp("published") / "model"
    theirs.save_pretrained(directory)
    return theirs, directory, flagformer.load(directory).eval()


def ids_of(rows=2, length=24):
    return torch.randint(3, 90, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, use_cache=False, **kwargs).logits


def gap(got, want):
    """The largest difference in standard deviations of the logits."""
    return ((got - want).abs().max() / want.std()).item()


def tensors_in(directory):
    """Every tensor of a directory."""
    from safetensors.torch import load_file

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_equal_files(first, second):
    """Equal names, shapes, dtypes and bits."""
    a, b = tensors_in(first), tensors_in(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def read_config(directory):
    return json.loads((directory / "config.json").read_text())
