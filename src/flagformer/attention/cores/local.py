"""Local attention: a query attends to nearby tokens (arXiv:2003.05997, section 4.1; 2001.04451)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import QKVBlocks, attend_blocks
from flagformer.attention.cores.fixed_windows import FixedWindows
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import AttentionBias, Dims, KeyValues, SideInputs
from flagformer.ops.borrow import borrow
from flagformer.ops.lengths import clamp_to_length, num_blocks
from flagformer.ops.zeros import with_zeros
from flagformer.position import Rotation

# Smallest number of queries in a block: smaller blocks cost more for each pair.
BLOCK = 32
SHORT = {"local_attn_window_size": 3}  # for tests of the flags: windows that end within a short row


class Local(Core):
    """Blocks of queries with the keys of their windows: O(T * reach) time and memory.

    Args:
        reach: number of tokens before a query that it attends to, and after it with `later`.
        later: whether queries may attend to later keys.
    """

    reads_heads = False
    path: ScorePipeline  # owned by the kernel

    def __init__(self, kernel: Kernel, path: ScorePipeline, reach: int, later: bool) -> None:
        super().__init__()
        self.kernel, self.lookaround, self.bidirectional = kernel, reach, later
        borrow(self, {"path": path})
        self.path_changes_at = (max(reach, BLOCK),)  # one block or several

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        bias.position_source()

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        length, keys = q.shape[2], kv.k.shape[2] - kv.num_prefix_kv
        before = keys - length  # queries are the last of the keys
        reach = max(clamp_to_length(self.lookaround, keys - 1), 1)
        size = clamp_to_length(max(reach, BLOCK), length)
        count = num_blocks(-(-length // size))
        ahead = reach if self.bidirectional else 0
        numbers = torch.arange(count, device=q.device).view(1, -1, 1, 1, 1) * size
        rows = numbers + torch.arange(size, device=q.device)[:, None]  # [1, N, 1, g, 1]
        columns = numbers + before - reach + torch.arange(reach + size + ahead, device=q.device)
        distance = rows + before - columns
        allowed = (distance <= reach) & (distance >= -ahead) & (columns >= 0) & (columns < keys)
        k, v = (
            self._around(x[:, :, kv.num_prefix_kv :], before, reach, size, count, ahead) for x in (kv.k, kv.v)
        )
        blocks = QKVBlocks(
            with_zeros(q, 0, count * size - length).unflatten(2, (count, size)).transpose(1, 2),
            k,
            v,
            allowed,
            rows.clamp(max=length - 1),
            columns.clamp(0, keys - 1),
            rows[..., 0].clamp(max=length),
            only_earlier=not ahead,
            may_mask_all=count * size > length,
        )
        out = attend_blocks(self.kernel, self.path, blocks, kv, bias, side.collector)  # [B, N, h, g, V]
        return out.transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _around(self, x: Tensor, before: int, reach: int, size: int, count: int, ahead: int) -> Tensor:
        """[B, G, S, K] -> [B, N, G, reach + size + ahead, K], keys of each block; zeros outside the row."""
        first = before - reach
        x = x[:, :, max(first, 0) :]
        wanted = reach + count * size + ahead
        x = with_zeros(x, max(-first, 0), wanted - max(-first, 0) - x.shape[2])
        width = reach + size + ahead
        if torch.compiler.is_compiling():  # the step of `unfold` fixes a graph's length
            starts = torch.arange(count, device=x.device) * size
            indices = starts[:, None] + torch.arange(width, device=x.device)  # [N, reach + size + ahead]
            found = x.index_select(2, indices.flatten())
            return found.view(*x.shape[:2], *indices.shape, -1).transpose(1, 2)
        return x.unfold(2, width, size).permute(0, 2, 1, 4, 3)


class HeadShare:
    """Contract of the slot `local`, built as `(dims)`: the first `heads` heads use local attention."""

    heads = 0

    def core(self, kernel: Kernel, path: ScorePipeline, dims: Dims, rotation: Rotation) -> Core:
        """Return the core of the local heads; `rotation` is that of the model."""
        raise NotImplementedError


@component("local")
class NoLocal(HeadShare):
    """No local heads: all heads use the same core."""

    def __init__(self, dims: Dims) -> None:
        pass


@component(
    "local",
    select="n_local_attn_heads",
    paper="arXiv:2003.05997, section 4.1",
    kind="a",
    lacks={"all_pairs": "local heads do not compute the scores of all pairs"},
)
class LocalHeads(HeadShare):
    """The first heads use local attention; the others use the slot `core`.

    Departure: the window slides with the query. In the published code the sequence is split into fixed
    windows, and a query attends to its own window and to `radius` whole windows before it, so that the
    number of its keys depends on the window boundaries. `fixed` selects this form, with boundaries at fixed
    positions, independent of left padding. Weights of local-attention and of local heads of
    routing-transformer can then be converted: their rotary positions are `rotary_pos_emb`; biases of their
    projections are not supported.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        heads: Annotated[
            int | None,
            Flag("n_local_attn_heads", "number of heads with local attention", ge=0, example_with=SHORT),
        ],
        window: Annotated[
            int, Flag("local_attn_window_size", "tokens of a window of local heads", ge=1)
        ] = 256,
        radius: Annotated[
            int,
            Flag(
                "local_attn_radius_blocks",
                "windows of keys on each allowed side, for local heads",
                ge=1,
                example_with=SHORT,
            ),
        ] = 1,
        fixed: Annotated[
            bool,
            Flag(
                "local_attn_fixed_windows",
                "fixed windows by position, as in local-attention, not sliding",
                example_with=SHORT,
            ),
        ] = False,
    ) -> None:
        assert heads is not None
        if heads > dims.heads:
            text = f"`n_local_attn_heads` must be at most `heads` = {dims.heads}, but is {heads}"
            raise FlagError([Finding("n_local_attn_heads", text)])
        self.heads, self.window, self.radius, self.fixed = heads, window, radius, fixed

    def core(self, kernel: Kernel, path: ScorePipeline, dims: Dims, rotation: Rotation) -> Core:
        later = not dims.causal
        if self.fixed:
            return FixedWindows(kernel, path, self.window, self.radius, later, rotation)
        return Local(kernel, path, self.window * self.radius, later)
