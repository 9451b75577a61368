"""Long texts in segments: training and generation with memories (Transformer-XL, arXiv:1901.02860)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flagformer.flow import RecurrentState
from flagformer.generation import (
    LogitsFilter,
    PromptLike,
    Sampler,
    StoppingCriteria,
    bind_filter,
    decode,
    evaluating,
    read_prompts,
)
from flagformer.inputs.requests import (
    check_net,
    check_pad,
    check_request,
    first_step_kwargs,
    ids_and_targets,
)
from flagformer.inputs.segments import check_reach
from flagformer.ops.cross_entropy import cross_entropy
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_session
from flagformer.stack.whole import Whole
from flagformer.storage.saved import Unsaved

Mems = RecurrentState | Sequence[Tensor]


class XLAutoregressiveWrapper(Unsaved, Whole):
    """The next-token loss, and generation, over segments of `max_seq_len` with memories.

    Args:
        net: a causal model with `max_mem_len`, or `num_memory_slots`; one with `max_mem_len` must not have
            learned absolute positions. Others are refused with ValueError.
        ignore_index: targets with this value are ignored; `x` may hold it as padding.
        pad_value: id that replaces `ignore_index` in inputs and fills rows after their end.
    """

    net: Any  # a TransformerWrapper
    saving = (
        "`model.net.save(directory)` writes weights and flags, and "
        "`XLAutoregressiveWrapper(flagformer.load(directory))` wraps them"
    )

    def __init__(self, net: nn.Module, ignore_index: int = -100, pad_value: int = 0) -> None:
        super().__init__()
        check_net(net)
        self.net = net
        tokens, slots = (getattr(net, name, 0) for name in ("max_mem_len", "num_memory_slots"))
        if not tokens and not slots:
            raise ValueError(
                "`net` must have memory between segments: build it with `max_mem_len` or `num_memory_slots`"
            )
        if not self.net.max_seq_len:
            raise ValueError("`net` must have a segment length, but its `max_seq_len` is 0")
        check_reach(self.net, "net")
        check_pad(self.net, pad_value)
        self.ignore_index, self.pad_value = ignore_index, pad_value
        self.training = net.training

    def forward(
        self,
        x: Tensor,
        mems: Mems | None = None,
        *,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        embed_ids: Mapping[str, Tensor] | None = None,
        detach_mems: bool | None = None,
        return_mems: bool = False,
        condition: Tensor | None = None,
    ) -> Any:
        """Mean cross entropy, in nats, of x[:, 1:] given the tokens before, within the reach of memories.

        In training the auxiliary losses of the net are added, each segment's weighted by its share of tokens.

        Args:
            x: ids [B, T], T at least 2; read in segments of `max_seq_len`, the last may be shorter.
            mems: memories of the text before, a result of `return_mems`.
            mask: bool [B, T], True for tokens; a target counts if it and the token before are valid.
            context: [B, S, D] for models with cross attention, the same for all segments.
            context_mask: bool [B, S], True for tokens of the context.
            embed_ids: [B, T] for each name in the model's `embed_num_tokens`.
            detach_mems: True: no gradient flows from a segment to the one before; False: through all
                memories; None: through slots only, as in the papers.
            return_mems: return (loss, memories).
            condition: [B, C], the same for all segments, for models that read one (`adaptive_layernorm`).

        The loss is NaN where no target counts.
        """
        ids, targets = ids_and_targets(x, self.net, self.ignore_index, self.pad_value, mask)
        inputs = ids[:, :-1]
        total: Tensor | float = 0.0
        auxiliary: Tensor | float = 0.0
        for start in range(0, inputs.shape[1], self.net.max_seq_len):
            segment = slice(start, min(start + self.net.max_seq_len, inputs.shape[1]))
            logits, mems, extra = self._read(
                inputs[:, segment],
                {
                    "mask": None if mask is None else mask[:, segment],
                    "context": context,
                    "context_mask": context_mask,
                    "embed_ids": embed_ids and {name: i[:, segment] for name, i in embed_ids.items()},
                    "mems": mems,
                    "detach_mems": detach_mems,
                    "condition": condition,
                },
            )
            if extra is not None:
                auxiliary = auxiliary + extra * (logits.shape[1] / inputs.shape[1])
            total = total + cross_entropy(logits, targets[:, segment], self.ignore_index, "sum")
        loss = total / (targets != self.ignore_index).sum() + auxiliary
        return (loss, mems) if return_mems else loss

    def _read(self, ids: Tensor, kwargs: Mapping[str, Any]) -> tuple[Tensor, RecurrentState, Tensor | None]:
        """Logits of a segment, the memories after it, and the auxiliary losses in training."""
        if self.training and getattr(self.net, "has_losses", False):
            logits, outputs = self.net(ids, return_mems=True, return_losses=True, **kwargs)
            return logits, outputs.mems, outputs.extra_loss
        logits, mems = self.net(ids, return_mems=True, **kwargs)
        return logits, mems, None

    @as_session
    def generate(
        self,
        start_tokens: PromptLike,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: str | LogitsFilter | None = "top_k",
        filter_kwargs: Mapping[str, Any] | None = None,
        mems: Mems | None = None,
        *,
        seed: int | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """New tokens after each start: long [B, seq_len], or [seq_len] for one start without batch.

        Segments are those of training: each full one becomes memory, the current one is read whole.

        Args:
            start_tokens: ids [B, T] or [T], or lists of ids, all of one length, which may be any.
            mems: memories of the text before, a result of `return_mems`.
            context, context_mask, condition: as in the forward.

        Every other argument and the errors are those of `AutoregressiveWrapper.generate`.
        """
        check_request(self.net.num_tokens, seq_len, eos_token)
        device = home_of(self.net)[0]
        sample = Sampler(temperature, bind_filter(filter_logits_fn, filter_kwargs), seed, device)
        aligned = read_prompts(start_tokens, None, self.net.num_tokens, self.pad_value, device)
        if aligned.starts is not None:
            raise ValueError("`start_tokens` must be of one length, as all rows share their segments")
        stopping = StoppingCriteria(seq_len, eos_token, self.pad_value)
        segments: Any = _Segments(self.net, mems, condition)
        kwargs = first_step_kwargs(aligned, context, context_mask, None)
        with evaluating(self.net):
            new = decode(segments, aligned, stopping, sample, cached=False, kwargs=kwargs)
        return new if aligned.batched else new[0]


class _Segments(nn.Module):
    """A model for rows that grow from call to call, which reads each full segment once."""

    def __init__(self, net: Any, mems: Mems | None, condition: Tensor | None) -> None:
        super().__init__()
        self.net, self.mems, self.condition, self.num_read = net, mems, condition, 0

    def forward(
        self,
        ids: Tensor,
        *,
        return_embeddings: bool,
        seq_start_pos: None,
        window: None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """ids [B, n] -> the embeddings of the last segment."""
        longest = self.net.max_seq_len
        kwargs: dict[str, Any] = {"context": context, "context_mask": context_mask, "return_embeddings": True}
        kwargs["condition"] = self.condition
        while ids.shape[1] - self.num_read > longest:
            segment = ids[:, self.num_read : self.num_read + longest]
            _, self.mems = self.net(segment, mems=self.mems, return_mems=True, **kwargs)
            self.num_read += longest
        out: Tensor = self.net(ids[:, self.num_read :], mems=self.mems, **kwargs)
        return out

    def to_logits(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.net.to_logits(embeddings)
        return logits
