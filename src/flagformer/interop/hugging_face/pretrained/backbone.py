"""A model without the projection to logits, for trainers that compute a loss from embeddings.

TRL's trainers never hold all logits: they call `model.base_model`, and multiply its output in parts with
`model.get_output_embeddings().weight`.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from torch import Tensor

from flagformer.embedding.tokens import vectors_of
from flagformer.head.heads import LinearHead, TiedHead
from flagformer.interop.hugging_face.pretrained.requirement import load_transformers
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_forward
from flagformer.wrappers.transformer import TransformerWrapper

Output: Any = load_transformers().modeling_outputs.BaseModelOutput
# FlagformerForCausalLM -> its last output, as long as a trainer holds it.
OUTPUTS: WeakKeyDictionary[Any, ref[Any]] = WeakKeyDictionary()
# Arguments that say what `position_ids` say.
OF_POSITIONS = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "return_dict"}


class Projection(NamedTuple):
    """A projection to logits: its weight [V, E], and its bias [V] or None."""

    weight: Tensor
    bias: Tensor | None


class Backbone:
    """`FlagformerForCausalLM.base_model`: token ids -> the inputs of the projection to logits.

    Args:
        model: a FlagformerForCausalLM.
    """

    def __init__(self, model: Any) -> None:
        self.causal_lm = model

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids -> an output whose `last_hidden_state` [B, T, E] the projection to logits multiplies.

        While this output exists, `get_output_embeddings()` is that projection for a tied embedding too.

        Args:
            input_ids: [B, T] integers in [0, V).
            attention_mask: [B, T], zeros for padding.
            position_ids: [B, T], which begin at 0 again for each packed sequence.
            **kwargs: the same sequences in other forms (`cu_seq_lens_q`, `seq_idx`, ...), without effect. All
                others must be None or False.

        Raises:
            ValueError: for a model with auxiliary losses in training, which the loss would lack, for a head
                of another class than those of the catalogue, and for other arguments.
        """
        outer = self.causal_lm
        model: TransformerWrapper = outer.model
        for name in kwargs.keys() - OF_POSITIONS:
            if kwargs[name] is not None and kwargs[name] is not False:
                raise ValueError(f"`{name}` must be None or False, but is {kwargs[name]!r}: call the model")
        _check_head(model)
        embeddings = outer.outputs_of(input_ids, attention_mask, position_ids).embeddings
        output = Output(last_hidden_state=projection_inputs(model, embeddings))
        if isinstance(model.head, TiedHead):
            output.projection = tied_projection(model)
            OUTPUTS[outer] = ref(output)
        return output


def projection_of(outer: Any) -> Projection | None:
    """The projection of the last output of `outer.base_model`; None if the output is gone, or not tied."""
    output = OUTPUTS[outer]() if outer in OUTPUTS else None
    return None if output is None else output.projection


def _check_head(model: TransformerWrapper) -> None:
    """Raise ValueError for a model whose loss is more than a cross entropy of projected embeddings."""
    if model.training and model.has_losses:
        raise ValueError(
            "a trainer that computes its loss from embeddings, such as those of TRL, would leave out the "
            "auxiliary losses of this model (routing attention, experts): use the Trainer of transformers"
        )
    if not isinstance(model.head, (LinearHead, TiedHead)):
        raise ValueError(
            "a trainer that computes its loss from embeddings needs a head of the catalogue, but the model "
            f"has {type(model.head).__name__}: use the Trainer of transformers"
        )


@as_forward
def projection_inputs(model: TransformerWrapper, embeddings: Tensor) -> Tensor:
    """[B, T, D] of the last layer -> [B, T, E]."""
    head: Any = model.head
    inputs: Tensor = head.inputs(embeddings)
    return inputs


@as_forward
def tied_projection(model: TransformerWrapper) -> Projection:
    """The embedding of every token as the head reads it, with adapters and hooks, and the bias of logits."""
    vectors = vectors_of(model.token_emb, model.num_tokens, home_of(model)[0])
    return Projection(model.form(vectors), getattr(model.head.add_bias, "bias", None))
