"""Patches of an image as tokens (ViT, arXiv:2010.11929, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flagformer.norm.layernorm import LayerNorm
from flagformer.ops.identity import identity

STD = 0.02  # initial standard deviation of position embeddings and registers


class PatchEmbedding(nn.Module):
    """Images [B, C, height, width] -> [B, N, D]: patches row by row, with learned position embeddings.

    Position embeddings are a grid of the training size; for an image of another size the grid is resized
    (bicubic, antialiased), as in section 3.2 of the paper. It starts as a normal distribution of standard
    deviation 0.02.

    Args:
        grid: patches in a column and in a row, (rows, columns).
        patch: pixels of a patch, (height, width).
        has_positions: whether there are position embeddings.
        has_norms: LayerNorms of the pixels of a patch and of the projection's output; the paper has none.
        bias: whether the projection has a bias.
    """

    pos_emb: Tensor | None

    def __init__(
        self,
        grid: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        dim: int,
        has_positions: bool = True,
        has_norms: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.grid, self.patch, self.channels = grid, patch, channels
        pixels = channels * patch[0] * patch[1]
        self.in_norm = LayerNorm(pixels) if has_norms else identity
        self.project = nn.Linear(pixels, dim, bias=bias)
        self.out_norm = LayerNorm(dim) if has_norms else identity
        self.pos_emb = nn.Parameter(torch.empty(*grid, dim)) if has_positions else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.pos_emb is not None:
            nn.init.normal_(self.pos_emb, std=STD)

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.patch
        rows, columns = self.grid_of(images)
        x = rearrange(images, "b c (r h) (k w) -> b (r k) (h w c)", h=height, w=width)
        x = self.out_norm(self.project(self.in_norm(x)))
        pos_emb = self.pos_emb_for(rows, columns)
        return x if pos_emb is None else x + pos_emb.flatten(0, 1)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; ValueError for sizes that are not multiples of the patch size."""
        height, width = self.patch
        if images.dim() != 4 or images.shape[1] != self.channels or not images.is_floating_point():
            raise ValueError(
                f"`img` must be floating-point numbers of shape [B, {self.channels}, height, width], "
                f"but is {images.dtype} of shape {list(images.shape)}"
            )
        y, x = images.shape[2:]
        if y % height or x % width or not y or not x:
            raise ValueError(
                f"`img` must be a multiple of `patch_size` {height} x {width} pixels high and wide, "
                f"but is {y} x {x}: crop, pad or resize it"
            )
        return y // height, x // width

    def pos_emb_for(self, rows: int, columns: int) -> Tensor | None:
        """The position embeddings of a grid, [rows, columns, D]; None if there are none."""
        if self.pos_emb is None or (rows, columns) == self.grid:
            return self.pos_emb
        table = self.pos_emb.permute(2, 0, 1)[None]
        exact = table.float() if table.dtype in (torch.bfloat16, torch.float16) else table
        resized = F.interpolate(exact, (rows, columns), mode="bicubic", align_corners=False, antialias=True)
        return resized[0].permute(1, 2, 0).to(table.dtype)


class ClassToken(nn.Module):
    """Put a learned token in front (arXiv:2010.11929, section 3.1): [B, N, D] -> [B, 1 + N, D].

    It starts as a normal distribution of standard deviation 0.02.

    Args:
        has_position: whether a learned position embedding is added to it.
    """

    def __init__(self, dim: int, has_position: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, dim))
        self.pos_emb = nn.Parameter(torch.empty(1, dim)) if has_position else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token, std=STD)
        if self.pos_emb is not None:
            nn.init.normal_(self.pos_emb, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token if self.pos_emb is None else self.token + self.pos_emb
        return torch.cat([token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)


class Registers(nn.Module):
    """Append learned register tokens (arXiv:2309.16588): [B, N, D] -> [B, N + R, D].

    They start as a normal distribution of standard deviation 0.02.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=STD)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
