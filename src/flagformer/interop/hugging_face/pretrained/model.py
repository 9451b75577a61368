"""A causal language model of any flags as a `PreTrainedModel` of transformers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flags import only_allowed
from flagformer.flow import Outputs
from flagformer.inputs.requests import check_net
from flagformer.interop.hugging_face.own import PREFIX
from flagformer.interop.hugging_face.pretrained.backbone import Backbone, projection_of
from flagformer.interop.hugging_face.pretrained.cache import FlagformerCache
from flagformer.interop.hugging_face.pretrained.config import FlagformerConfig
from flagformer.interop.hugging_face.pretrained.padding import (
    check_padding,
    packed_lengths,
    padding_arguments,
)
from flagformer.interop.hugging_face.pretrained.requirement import load_transformers
from flagformer.interop.hugging_face.pretrained.resize import refuse_fixed, set_num_tokens
from flagformer.models.build import build, check
from flagformer.stack.executor.checkpointed import Checkpointed
from flagformer.storage.changes import refuse_changed, second_names
from flagformer.wrappers.transformer import TransformerWrapper

transformers = load_transformers()
PreTrainedModel: Any = transformers.PreTrainedModel
GenerationMixin: Any = transformers.GenerationMixin
Output: Any = transformers.modeling_outputs.CausalLMOutputWithPast
# The field of the output that holds the cache: `cache` since transformers 5.24.
CACHE = next(name for name in ("cache", "past_key_values") if name in Output.__dataclass_fields__)


class FlagformerForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with the interface of transformers: `save_pretrained`, `generate`, `labels`.

    Args:
        config: the flags.
        model: the model of these flags; None: a new one.

    Attributes:
        model: the TransformerWrapper.

    Raises:
        ValueError: for flags of another model than a causal language model, and for classes by import path
            in modules that no surrounding `flagformer.flags.allowed_modules` lists.
    """

    config_class = FlagformerConfig
    base_model_prefix = PREFIX[:-1]
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # `num_items_in_batch`

    def __init__(self, config: FlagformerConfig, model: TransformerWrapper | None = None) -> None:
        super().__init__(config)
        if config.flags is None:
            raise ValueError("`config.flags` must hold the flags of a model, but is None")
        if model is None:
            with only_allowed():  # the flags may come from a file
                model = build(config.flags)
        self.model = model
        check_net(self.model, "model")
        self._no_split_modules = _units(self.model)
        self.gradient_checkpointing = False
        self._tied_weights_keys = {
            PREFIX + second: PREFIX + first for second, first in second_names(self.model).items()
        }
        if not self.model.can_cache:
            self.generation_config.use_cache = False
        if not any(parameter.is_meta for parameter in self.parameters()):
            for module in self.modules():  # constructors have initialised them
                vars(module).update(_is_hf_initialized=True)
        self.post_init()
        self.training = self.model.training

    @classmethod
    def of(cls, model: TransformerWrapper) -> FlagformerForCausalLM:
        """Wrap a model, with its parameters and mode.

        Raises:
            ValueError: for another model than a causal TransformerWrapper, and for one that was changed since
                its flags built it.
        """
        check_net(model, "model")
        refuse_changed(model, model.flags, model.from_flags)
        return cls(FlagformerConfig(flags=model.flags), model)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cache: FlagformerCache | None = None,
        past_key_values: FlagformerCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Token ids -> logits, and the loss of `labels`.

        Args:
            input_ids: [B, T] integers in [0, V).
            attention_mask: [B, T], zeros for padding; with a cache [B, stored + T]. The first token of each
                row has position 0. With a cache padding must be at the left.
            position_ids: [B, T], or [1, T] for all rows: those of the tokens of each row, or positions that
                begin at 0 again for each sequence packed in it, without padding and cache. None: one
                sequence.
            inputs_embeds: must be None.
            labels: [B, T], the targets; token t predicts label t + 1, -100 is ignored.
            cache: the result of an earlier forward, whose tokens `input_ids` continue; without gradient.
            past_key_values: the name of `cache` before transformers 5.24.
            use_cache: return a cache of these tokens.
            output_attentions: return the attention maps [B, H, T, S] of each attention sublayer.
            output_hidden_states: return the stream [B, T, D] before each sublayer, and the final output.
            return_dict: False: a tuple.
            logits_to_keep: number of last tokens, or indices of tokens, that logits are computed for; 0: all.
            num_items_in_batch: number of labels over which the loss is a mean; None: those of this call.

        Returns:
            loss (None without labels), logits, cache, hidden_states and attentions. In training the auxiliary
            losses of routing attention and mixtures of experts are part of the loss.

        Raises:
            ValueError: names the argument, its value and the values allowed.
        """
        cache = past_key_values if cache is None else cache
        ids = _checked(input_ids, inputs_embeds, labels, cache, use_cache, logits_to_keep)
        if use_cache and cache is None:
            cache = FlagformerCache()
        requested = bool(output_attentions), bool(output_hidden_states)
        outputs = self.outputs_of(ids, attention_mask, position_ids, cache, any(requested))
        logits = self.model.to_logits(_kept(outputs.embeddings, logits_to_keep))
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch, outputs)
        found = Output(
            loss=loss,
            logits=logits,
            hidden_states=(*outputs.hiddens[:-1], outputs.embeddings) if requested[1] else None,
            attentions=outputs.attention if requested[0] else None,
            **{CACHE: cache},
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return found if as_dict else found.to_tuple()

    def outputs_of(
        self,
        ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: FlagformerCache | None = None,
        details: bool = False,
    ) -> Outputs:
        """The outputs of the layers for ids [B, T]; `details`: with hidden states and attention maps."""
        stored = None if cache is None else cache.get_seq_length()
        packed = packed_lengths(position_ids, attention_mask, ids.shape[0], ids.shape[1], stored)
        given: dict[str, Any]
        if packed is not None:
            given = {"seq_lens": packed}
        elif cache is None:
            given = padding_arguments(check_padding(attention_mask, *ids.shape))
        else:
            given = {"state": cache.state_for(self.model, ids, attention_mask)}
        losses = self.model.training and self.model.has_losses
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            if not details and not losses:
                return Outputs(self.model(ids, return_embeddings=True, **given))
            options = {"return_intermediates": details, "return_embeddings": not details}
            outputs: Outputs = self.model(ids, return_losses=losses, **options, **given)[1]
        return outputs

    def _loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None, outputs: Outputs) -> Tensor:
        """The mean cross entropy over the labels, plus auxiliary losses with the same share of the batch."""
        loss: Tensor = self.loss_function(
            logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=items
        )
        extra = outputs.extra_loss if self.model.training else None
        if extra is None:
            return loss
        return loss + (extra if items is None else extra * (labels[:, 1:] != -100).sum() / items)

    @property
    def base_model(self) -> Any:
        """The model without its projection to logits."""
        return Backbone(self)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        table: nn.Module = self.model.token_emb
        return table

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.add_module("token_emb", value)

    def get_output_embeddings(self) -> Any:
        """The projection to logits; None if it is the token embedding (`tie_embedding`), except to the caller
        of `base_model`."""
        return projection_of(self) or getattr(self.model.head, "project", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection to logits."""
        self.model.head.add_module("project", new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Change the size of the vocabulary, with the flag `num_tokens`.

        Args:
            new_num_tokens: None: unchanged.
            pad_to_multiple_of: round the size up to a multiple.
            mean_resizing: draw new rows around the mean of the others.

        Raises:
            ValueError: for a model in which another tensor depends on the vocabulary.
        """
        count = new_num_tokens or self.model.num_tokens
        if pad_to_multiple_of is not None:
            count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
        if count == self.model.num_tokens:
            return self.get_input_embeddings()
        refuse_fixed(self.config.flags, count)
        table: nn.Module = super().resize_token_embeddings(count, None, mean_resizing)
        set_num_tokens(self.model, count)
        self.config.flags = {**self.config.flags, "num_tokens": count}
        return table

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Second names of parameters -> their first; a tied head has no parameter."""
        return dict(self._tied_weights_keys)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] | None = None,
        every_n_layers: int = 1,
    ) -> None:
        """Recompute each sublayer in the backward, as the flag `checkpoint="sublayer"`."""
        layers = self.model.attn_layers
        if every_n_layers != 1:
            raise ValueError(f"`every_n_layers` must be 1, but is {every_n_layers}")
        if not enable:
            layers.executor = layers.resolved.stack["executor"][0].build()
        elif not self.config.flags.get("checkpoint"):
            check({**self.config.flags, "checkpoint": "sublayer"})
            layers.executor = Checkpointed(unit="sublayer")
        self.gradient_checkpointing = enable

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the tensors that a directory lacked, and new rows of the vocabulary."""
        if type(module) is nn.Embedding:
            table: Any = self.model.token_emb
            nn.init.normal_(module.weight, std=table.std)
            return
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        kept = {name: one.clone() for name, one in own if getattr(one, "_is_hf_initialized", False)}
        module.reset_parameters()  # type: ignore[operator]
        for name, tensor in kept.items():
            getattr(module, name).copy_(tensor)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Give `generate` a cache for all its tokens, unless the caller gave one, or `use_cache=False`."""
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        if generation_config.use_cache is not False and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = FlagformerCache(max_cache_length)


def _units(model: TransformerWrapper) -> list[str]:
    """Names of the classes that FSDP shards as units: sublayers, or all layers under `reversible`."""
    layers = model.attn_layers
    if layers.flags.get("reversible"):
        return [type(layers).__name__]
    return sorted({type(sublayer).__name__ for sublayer in layers.sublayers})


def _checked(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    labels: Tensor | None,
    cache: Any,
    use_cache: bool | None,
    logits_to_keep: int | Tensor,
) -> Tensor:
    """The ids; ValueError for arguments that are missing or cannot be combined."""
    if inputs_embeds is not None or input_ids is None:
        raise ValueError("`input_ids` must be given, and `inputs_embeds` must be None: the model embeds ids")
    if cache is not None and not isinstance(cache, FlagformerCache):
        raise ValueError(f"`cache` must be a FlagformerCache, but is a {type(cache).__name__}")
    if labels is not None and torch.is_grad_enabled() and (use_cache or cache is not None):
        raise ValueError("`labels` and a cache cannot be combined, because a cache has no gradient")
    if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        raise ValueError("`logits_to_keep` must be 0 with `labels`, which need the logits of all tokens")
    return input_ids


def _kept(embeddings: Tensor, keep: int | Tensor) -> Tensor:
    """[B, T, D] -> the last `keep` tokens, or those of an index; 0: all."""
    if isinstance(keep, Tensor):
        return embeddings[:, keep]
    return embeddings[:, -keep:] if keep else embeddings
