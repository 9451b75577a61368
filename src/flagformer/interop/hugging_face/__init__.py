"""Models of transformers: directories of `save_pretrained` as models of flags, and back."""

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families import families, family_of
from flagformer.interop.hugging_face.read import load_directory
from flagformer.interop.hugging_face.write import export

__all__ = ["ConversionError", "export", "families", "family_of", "load_directory"]
