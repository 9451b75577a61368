"""The sizes of published models by name: fields of their configs, for the tables of families.

Fields that are left out have the default of the family's config class.
"""

from __future__ import annotations

from collections.abc import Mapping

from flagformer.interop.hugging_face.sizes.encoders import ENCODERS
from flagformer.interop.hugging_face.sizes.experts import EXPERTS
from flagformer.interop.hugging_face.sizes.gpt import GPT
from flagformer.interop.hugging_face.sizes.llama import LLAMA
from flagformer.interop.hugging_face.sizes.pairs import PAIRS
from flagformer.interop.hugging_face.sizes.qwen import QWEN
from flagformer.interop.hugging_face.sizes.recent import RECENT
from flagformer.interop.hugging_face.sizes.speech import SPEECH
from flagformer.interop.hugging_face.sizes.table import Size
from flagformer.interop.hugging_face.sizes.vision import VISION

SIZES: Mapping[str, Size] = {
    **LLAMA,
    **QWEN,
    **EXPERTS,
    **GPT,
    **RECENT,
    **ENCODERS,
    **PAIRS,
    **SPEECH,
    **VISION,
}

__all__ = ["SIZES", "Size"]
