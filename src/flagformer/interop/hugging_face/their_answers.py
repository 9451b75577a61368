"""The answers of a model of transformers to probes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flagformer.interop.hugging_face.parity import Answer, Probe

# All classes have eager attention; that of Falcon adds ALiBi twice in transformers 5.24.
SDPA = ("FalconForCausalLM",)


def need_transformers() -> Any:
    """The module; ImportError with the command that installs it."""
    try:
        import transformers
    except ImportError:
        raise ImportError(
            "the comparison needs transformers, which is not installed: `pip install 'flagformer[hf]'`"
        ) from None
    return transformers


def their_model(directory: Path, name: str) -> Any:
    """The model of a directory in fp32, as the class `name` of transformers; no code of it is executed.

    Of a class that holds its text decoder as a model of its own, that model: `Llama4ForConditionalGeneration`
    of transformers 5.24 reads no texts without images.
    """
    cls = getattr(need_transformers(), name)
    whole = cls.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="sdpa" if name in SDPA else "eager",
        local_files_only=True,
        use_safetensors=True,
    ).eval()
    text = getattr(whole, "language_model", None)
    return text if hasattr(text, "lm_head") else whole


def their_answer(model: Any, kind: str, probe: Probe, count: int) -> Answer:
    """The answer of a model.

    Args:
        kind: the flag `model`.
        count: number N of greedy tokens.
    """
    if probe.cached is None:
        return _forward(model, kind, probe)
    mask = probe.mask
    assert mask is not None
    model.generation_config = need_transformers().GenerationConfig(
        max_new_tokens=count,
        do_sample=False,
        use_cache=probe.cached and _can_cache(model.config),
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        decoder_start_token_id=probe.start,
    )
    out = model.generate(probe.inputs, attention_mask=mask.long())
    steps = torch.stack(out.logits, dim=1).float()
    tokens = out.sequences[:, -steps.shape[1] :]
    if kind == "xtransformer":
        return Answer(steps.flatten(0, 1), tokens)
    kwargs = {"attention_mask": mask.long(), "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    prompt = model(probe.inputs, **kwargs).logits
    return Answer(torch.cat([prompt[mask], steps.flatten(0, 1)]), tokens)


def _can_cache(config: Any) -> bool:
    """`generate` makes its cache for as many layers as the encoder of T5 has (transformers 5.24)."""
    layers = getattr(config, "num_decoder_layers", None)
    return layers is None or layers <= config.num_hidden_layers


def _forward(model: Any, kind: str, probe: Probe) -> Answer:
    """The outputs of a forward for tokens, rows or patches."""
    if probe.mask is None:
        found = model(pixel_values=probe.inputs)
    else:
        found = model(input_ids=probe.inputs, attention_mask=probe.mask.long())
    pooled = kind == "classifier" or model.config.model_type == "clip_vision_model"
    if "logits" in found:
        out = found.logits
    else:
        out = found.pooler_output if pooled else found.last_hidden_state
    if probe.mask is not None and out.dim() == 3:
        out = out[probe.mask]
    return Answer(out.flatten(0, -2), logits="logits" in found)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor progress bars of transformers."""
    logging = need_transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
