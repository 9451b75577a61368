"""Models of flags as models of transformers: one `PreTrainedModel` for every causal language model.

Importing this package registers the classes at `AutoConfig` and `AutoModelForCausalLM`. It needs
transformers, which the rest of the library does not import.
"""

from flagformer.interop.hugging_face.pretrained.cache import FlagformerCache
from flagformer.interop.hugging_face.pretrained.config import FlagformerConfig
from flagformer.interop.hugging_face.pretrained.model import FlagformerForCausalLM
from flagformer.interop.hugging_face.pretrained.requirement import load_transformers

__all__ = ["FlagformerCache", "FlagformerConfig", "FlagformerForCausalLM", "register"]


def register() -> None:
    """Let `AutoConfig` and `AutoModelForCausalLM` open directories with `"model_type": "flagformer"`."""
    transformers = load_transformers()
    transformers.AutoConfig.register(FlagformerConfig.model_type, FlagformerConfig, exist_ok=True)
    auto = transformers.AutoModelForCausalLM
    auto.register(FlagformerConfig, FlagformerForCausalLM, exist_ok=True)


register()
