"""Local attention over fixed windows, as in the package local-attention (arXiv:2003.05997, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.cores import Core
from flagformer.attention.cores.block_sparse import QKVBlocks, attend_blocks
from flagformer.attention.kernels import Kernel
from flagformer.attention.scores import ScorePipeline
from flagformer.flow import KeyValues, Layout, QKIndices, SideInputs, Terms
from flagformer.ops.borrow import borrow
from flagformer.ops.lengths import clamp_to_length, num_blocks
from flagformer.ops.zeros import with_zeros
from flagformer.position import Rotation


class FixedWindows(Core):
    """Positions are cut in windows; a query meets its own and `radius` whole ones on each visible side.

    Blocks of keys are laid side by side by `look_around` of local-attention, and attended to by the kernel of
    the model. A window is cut by position, not by place in storage: padding in front moves no cut.

    Args:
        window: positions of a window.
        radius: windows before that of a query, and after it where a mask may allow those.
        later: whether a mask may allow them.
        rotation: of the model. Where later windows are seen, local-attention counts a query's rotary position
            from the end of what it sees, `window * radius` too late; so does this class, or trained weights
            would not carry over.
    """

    reads_pairs = False
    reads_terms = True
    path: ScorePipeline  # the written-out way to weights, which the kernel owns
    rotation: Rotation  # the stack's own

    def __init__(
        self, kernel: Kernel, path: ScorePipeline, window: int, radius: int, later: bool, rotation: Rotation
    ) -> None:
        super().__init__()
        from local_attention.local_attention import look_around

        self.look_around = look_around
        self.kernel, self.window, self.radius, self.bidirectional = kernel, window, radius, later
        borrow(self, {"path": path, "rotation": rotation})
        self.lookaround = window * (radius + 1) - 1
        self.path_changes_at = (window, self.lookaround)  # one block or several; more than a query sees

    def forward(self, q: Tensor, kv: KeyValues, side: SideInputs) -> Tensor:
        length, keys = q.shape[2], kv.k.shape[2] - kv.num_prefix_kv
        before = keys - length  # queries are the last of the keys
        size = clamp_to_length(self.window, length)
        count = num_blocks(-(-length // size))
        back = -(
            -clamp_to_length(self.lookaround, keys) // size
        )  # blocks, as a row may begin anywhere in its first window
        ahead = back if self.bidirectional else 0
        numbers = torch.arange(count, device=q.device).view(1, -1, 1, 1, 1) * size
        of_q = numbers + torch.arange(size, device=q.device)[:, None]  # [1, N, 1, g, 1]
        of_k = numbers + before - back * size + torch.arange((back + 1 + ahead) * size, device=q.device)
        spots = QKIndices(of_q.clamp(max=length - 1), of_k.clamp(0, keys - 1), side.heads)
        visible = (of_k >= 0) & (of_k < keys) & self._meet(spots, side.terms[kv.window])
        if not self.bidirectional:
            visible = visible & (of_k <= of_q + before)
        k, v = (self._around(x[:, :, kv.num_prefix_kv :], before, size, count, back) for x in (kv.k, kv.v))
        blocks = with_zeros(self._turned(q), 0, count * size - length).unflatten(2, (count, size))
        rows = of_q[..., 0].clamp(max=length)
        few = QKVBlocks(
            blocks.transpose(1, 2), k, v, visible, spots, rows, not self.bidirectional, count * size > length
        )
        out = attend_blocks(self.kernel, self.path, few, kv, side)  # [B, N, h, g, V]
        return out.transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _meet(self, spots: QKIndices, terms: Terms) -> Tensor:
        """[1 or B, N, 1, g, s] bool: whether the windows of a query and a key are near enough."""
        of_q = spots.of_rows(terms.queries.positions, spots.q_idx) // self.window
        of_k = spots.of_rows(terms.keys.positions, spots.kv_idx) // self.window
        return (of_q - of_k).abs() <= self.radius

    def _around(self, x: Tensor, before: int, size: int, count: int, back: int) -> Tensor:
        """[B, G, S, K] -> [B, N, G, s, K]: keys of and around each block of queries; zeros beyond the row."""
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

    def _turned(self, q: Tensor) -> Tensor:
        """Queries as local-attention turns them, see `rotation`."""
        if not self.bidirectional:
            return q
        late = torch.full((1, 1), self.window * self.radius, device=q.device)
        return self.rotation.queries(q, self.rotation.cos_sin(Layout(late), q.dtype))
