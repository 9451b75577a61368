"""Llama 4, text: chunks, layers without a rotation, experts in some layers."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.llama import BIASES, LLAMA, NOPE, L, P
from flagformer.interop.hugging_face.families.moe import NO_FF, M
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, on
from flagformer.interop.hugging_face.rope import FULL, rope
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Cat, Transposed

CHUNKED = "chunked_attention"
CHUNK, NORM, FLOOR = "attn_chunk_size", "attn_qk_rmsnorm", "attn_temperature_floor"


def _chunks(config: Config, flags: Flags) -> Flags:
    depth, size = flags["depth"], config["attention_chunk_size"]
    rotated = [at(flags, "rotary_pos_emb", i) for i in range(depth)]
    found = config["layer_types"] or [CHUNKED if size and turned else FULL for turned in rotated]
    if len(found) != depth or set(found) - {CHUNKED, FULL} or (CHUNKED in found and not size):
        text = f"config `layer_types` must hold {FULL!r} or, with `attention_chunk_size`, {CHUNKED!r}"
        raise ConversionError([f"{text} for each of {depth} layers, but is {found!r}"])
    return {CHUNK: collapse(size if kind == CHUNKED else None for kind in found)}


def _layer_types(flags: Flags) -> Config:
    sizes = [at(flags, CHUNK, i) for i in range(flags["depth"])]
    return {
        "attention_chunk_size": next((size for size in sizes if size), None),
        "layer_types": [CHUNKED if size else FULL for size in sizes],
    }


def _norms(config: Config, flags: Flags) -> Flags:
    """Queries and keys have a norm in layers with a rotation, and a temperature in the others."""
    rotated = [bool(at(flags, "rotary_pos_emb", i)) for i in range(flags["depth"])]
    found: Flags = {}
    if config["use_qk_norm"] and any(rotated):
        found |= {
            NORM: collapse(turned or None for turned in rotated),
            f"{NORM}_weight": "none",
            "rotary_before_qk_rmsnorm": True,
            f"{NORM}_eps": flags["norm_eps"],
        }
    if config["attn_temperature_tuning"] and not all(rotated):
        found[FLOOR] = collapse(None if turned else config["floor_scale"] for turned in rotated)
        found["attn_temperature_weight"] = config["attn_scale"]
    return found


def _norm_fields(flags: Flags) -> Config:
    layers = range(flags["depth"])
    floors = [at(flags, FLOOR, i) for i in layers if at(flags, FLOOR, i)]
    weights = [at(flags, "attn_temperature_weight", i) for i in layers if at(flags, FLOOR, i)]
    return {
        "use_qk_norm": any(at(flags, NORM, i) for i in layers),
        "attn_temperature_tuning": bool(floors),
        "floor_scale": floors[0] if floors else 8192,
        "attn_scale": weights[0] if weights else 0.1,
    }


def _experts(config: Config, flags: Flags) -> Flags:
    depth, step = flags["depth"], config["interleave_moe_layer_step"]
    sparse = config["moe_layers"]
    sparse = range(step - 1, depth, step) if sparse is None else sparse
    return {
        "ff_moe": collapse(True if i in sparse else None for i in range(depth)),
        "ff_inner_dim": collapse(
            config["intermediate_size" if i in sparse else "intermediate_size_mlp"] for i in range(depth)
        ),
        "moe_num_experts": config["num_local_experts"],
    }


def _expert_fields(flags: Flags) -> Config:
    layers = range(flags["depth"])
    sparse = [i for i in layers if at(flags, "ff_moe", i)]
    dense = [i for i in layers if i not in sparse]
    width = at(flags, "ff_inner_dim", sparse[0])
    return {
        "intermediate_size": width,
        "intermediate_size_mlp": at(flags, "ff_inner_dim", dense[0]) if dense else width,
        "num_local_experts": at(flags, "moe_num_experts", sparse[0]),
        "moe_layers": sparse,
        "interleave_moe_layer_step": 1,
    }


EXPERTS = {
    "intermediate_size": 8192, "intermediate_size_mlp": 16384, "num_local_experts": 16, "moe_layers": None,
    "interleave_moe_layer_step": 1,
}  # fmt: skip
TUNING = {"use_qk_norm": True, "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1}
F = P + "feed_forward."
PARTS = ("gate", "up", "down")
LLAMA4 = LLAMA.but(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    fixed={
        **on("rotary_interleaved ff_no_bias moe_weight_input"),
        "moe_router": "sigmoid",
        "moe_normalize_weights": False,
        "moe_num_shared_experts": 1,
    },
    inert="router_jitter_noise for_llm_compressor",
    fields={
        "mlp_bias": ...,
        "rope_parameters": ...,
        "attention_bias": BIASES["attention_bias"],
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "no_rope_layers": NOPE,
        " rope": rope(5e5),
        "attention_chunk_size": Fields(
            {"attention_chunk_size": 8192, "layer_types": None}, _chunks, _layer_types
        ),
        "use_qk_norm": Fields(TUNING, _norms, _norm_fields),
        "intermediate_size": Fields(EXPERTS, _experts, _expert_fields),
        "num_experts_per_tok": Field("moe_top_k", 1),
    },
    tensors={
        **NO_FF,
        **{F + f"{n}_proj.weight": L + f"ff.{n}.weight" for n in PARTS},
        **{F + f"shared_expert.{n}_proj.weight": M + f"shared.{n}.weight" for n in PARTS},
        F + "router.weight": M + "router.weight",
        F + "experts.gate_up_proj": Transposed(Cat(M + "gate.weight", M + "up.weight", dim=1)),
        F + "experts.down_proj": Transposed(M + "down.weight"),
    },
    missing="a model without experts; transformers counts positions of the temperature with padding",
)
FAMILIES = [LLAMA4]
