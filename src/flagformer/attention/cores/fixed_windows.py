"""Local attention over fixed windows, as in the package local-attention (arXiv:2003.05997, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import QKVBlocks, attend_blocks
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import AttentionBias, KeyValues, Layout, SideInputs
from flagformer.flow.mask_rules import lookup
from flagformer.ops.borrow import borrow
from flagformer.ops.lengths import clamp_to_length, num_blocks
from flagformer.ops.zeros import with_zeros
from flagformer.position import Rotation


class FixedWindows(Core):
    """A query attends to its own window and to `radius` whole windows before it, and after it if allowed.

    `look_around` of local-attention concatenates neighbouring windows of keys, and the kernel of the model
    computes attention. Window boundaries are multiples of `window` in position, so that left padding does not
    shift them.

    Args:
        window: number of positions in a window.
        radius: number of windows before that of the query, and after it with `later`.
        later: whether queries may attend to later keys.
        rotation: rotation of the model. With `later`, local-attention rotates queries by positions that are
            `window * radius` too large; this class does the same, so that trained weights can be converted.
    """

    reads_heads = False
    path: ScorePipeline  # owned by the kernel
    rotation: Rotation  # owned by the stack

    def __init__(
        self, kernel: Kernel, path: ScorePipeline, window: int, radius: int, later: bool, rotation: Rotation
    ) -> None:
        super().__init__()
        from local_attention.local_attention import look_around

        self.look_around = look_around
        self.kernel, self.window, self.radius, self.bidirectional = kernel, window, radius, later
        borrow(self, {"path": path, "rotation": rotation})
        self.lookaround = window * (radius + 1) - 1
        self.path_changes_at = (window, self.lookaround)  # several blocks; keys out of reach of a query

    def prepare(self, bias: AttentionBias, side: SideInputs) -> None:
        bias.position_source()

    def forward(self, q: Tensor, kv: KeyValues, bias: AttentionBias, side: SideInputs) -> Tensor:
        length, keys = q.shape[2], kv.k.shape[2] - kv.num_prefix_kv
        before = keys - length  # queries are the last of the keys
        size = clamp_to_length(self.window, length)
        count = num_blocks(-(-length // size))
        # in blocks, as a row may begin anywhere in its first window
        back = -(-clamp_to_length(self.lookaround, keys) // size)
        ahead = back if self.bidirectional else 0
        numbers = torch.arange(count, device=q.device).view(1, -1, 1, 1, 1) * size
        rows = numbers + torch.arange(size, device=q.device)[:, None]  # [1, N, 1, g, 1]
        columns = numbers + before - back * size + torch.arange((back + 1 + ahead) * size, device=q.device)
        q_idx, kv_idx = rows.clamp(max=length - 1), columns.clamp(0, keys - 1)
        allowed = (columns >= 0) & (columns < keys) & self._are_near(q_idx, kv_idx, bias)
        if not self.bidirectional:
            allowed = allowed & (columns <= rows + before)
        k, v = (self._around(x[:, :, kv.num_prefix_kv :], before, size, count, back) for x in (kv.k, kv.v))
        q = with_zeros(self._rotated(q), 0, count * size - length).unflatten(2, (count, size)).transpose(1, 2)
        rows, spare = rows[..., 0].clamp(max=length), count * size > length
        blocks = QKVBlocks(q, k, v, allowed, q_idx, kv_idx, rows, not self.bidirectional, spare)
        out = attend_blocks(self.kernel, self.path, blocks, kv, bias, side.collector)  # [B, N, h, g, V]
        return out.transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _are_near(self, q_idx: Tensor, kv_idx: Tensor, bias: AttentionBias) -> Tensor:
        """[1 or B, N, 1, g, s] bool: whether the windows of query and key are at most `radius` apart."""
        b = torch.arange(bias.kv.rows, device=q_idx.device).view(-1, 1, 1, 1, 1)
        of_q = lookup(bias.q.positions, b, q_idx) // self.window
        of_k = lookup(bias.kv.positions, b, kv_idx) // self.window
        return (of_q - of_k).abs() <= self.radius

    def _around(self, x: Tensor, before: int, size: int, count: int, back: int) -> Tensor:
        """[B, G, S, K] -> [B, N, G, s, K]: keys in and around each block of queries; zeros elsewhere."""
        ahead = back if self.bidirectional else 0
        front = back if count == 1 else min(back, -(-before // size))  # blocks of keys before the first query
        first = before - front * size
        x = x[:, :, max(first, 0) :]
        x = with_zeros(x, max(-first, 0), (front + count) * size - max(-first, 0) - x.shape[2])
        if count == 1:
            return F.pad(x, (0, 0, 0, ahead * size))[:, None]
        blocks = x.unflatten(2, (front + count, size)).flatten(0, 1)  # [B * G, blocks, g, K]
        around = self.look_around(blocks, backward=back, forward=ahead, pad_value=0.0)[:, front:]
        return around.unflatten(0, x.shape[:2]).transpose(1, 2)

    def _rotated(self, q: Tensor) -> Tensor:
        """Rotate queries by the offset of local-attention, see `rotation`."""
        if not self.bidirectional:
            return q
        late = torch.full((1, 1), self.window * self.radius, device=q.device)
        return self.rotation.queries(q, self.rotation.cos_sin(Layout(late), q.dtype))
