"""The keys and values of many texts, and the three ways in which a model reads and adds to them.

Each text has a row. Letters: R rows, B batch, T new tokens, n tokens that a query may look at,
H heads of queries, G heads of keys and values, D head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chatgot.config import ModelConfig

BLOCK = 64  # a step looks at a multiple of so many tokens: fewer shapes, so that kernels are reused


class KeyValueCache:
    """Room for the keys and values of R texts of `max_seq_length` tokens.

    k, v: one tensor a layer, (R, G, max_seq_length + 1, D). Memory is taken when it is written to.
    """

    def __init__(self, cfg: ModelConfig, rows: int, like: Tensor) -> None:
        # one place more than is used: a compiled step takes each n below the size as one case, and
        # the size itself as another
        shape = (rows, cfg.kv_heads, cfg.max_seq_length + 1, cfg.head_size)
        self.k = [like.new_zeros(shape) for _ in range(cfg.n_layers)]
        self.v = [like.new_zeros(shape) for _ in range(cfg.n_layers)]

    @property
    def bytes_per_token(self) -> int:
        """Return the memory of one token's keys and values."""
        layer = self.k[0]
        return 2 * len(self.k) * layer.size(1) * layer.size(3) * layer.element_size()

    def copy_row(self, source: int, to: int, length: int) -> None:
        """Copy the first `length` tokens of one row over those of another."""
        for tensor in (*self.k, *self.v):
            tensor[to, :, :length] = tensor[source, :, :length]

    def saved(self, row: int, length: int) -> list[Tensor]:
        """Return a copy of a row's first `length` tokens, for `restore`."""
        return [tensor[row, :, :length].clone() for tensor in (*self.k, *self.v)]

    def restore(self, row: int, saved: list[Tensor], length: int) -> None:
        """Write the first `length` tokens of a saved row into a row."""
        for tensor, copy in zip((*self.k, *self.v), saved, strict=True):
            tensor[row, :, :length] = copy[:, :length]


@dataclass
class Reading:
    """The next T tokens of one row, after `past` others: a text's beginning or its next part."""

    cache: KeyValueCache
    row: int
    past: int
    positions: Tensor  # (1, T)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, (1, G, T, D); return (1, H, T, D)."""
        T = q.size(2)
        n = self.past + T
        keys = self.cache.k[layer][self.row : self.row + 1, :, :n]  # (1, G, n, D)
        values = self.cache.v[layer][self.row : self.row + 1, :, :n]  # (1, G, n, D)
        keys[:, :, self.past :] = k
        values[:, :, self.past :] = v
        grouped = q.size(1) != k.size(1)
        if not self.past:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        earlier = torch.arange(n, device=q.device) <= self.positions[0][:, None]  # (T, n)
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=earlier, enable_gqa=grouped
        )


@dataclass
class Branching:
    """Tokens after one row that are not stored: several continuations of one text, side by side.

    visible: which of the new tokens each new token looks at, (T, T) bool; it also sees the row.
    """

    cache: KeyValueCache
    row: int
    past: int
    positions: Tensor  # (1, T)
    visible: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (1, H, T, D) for k and v (1, G, T, D)."""
        row = slice(self.row, self.row + 1)
        keys = torch.cat((self.cache.k[layer][row, :, : self.past], k), dim=2)  # (1, G, n, D)
        values = torch.cat((self.cache.v[layer][row, :, : self.past], v), dim=2)  # (1, G, n, D)
        before = self.visible.new_ones(q.size(2), self.past)
        mask = torch.cat((before, self.visible), dim=1)  # (T, n)
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, enable_gqa=q.size(1) != k.size(1)
        )


@dataclass
class OneToken:
    """One more token for each of the rows 0 to B - 1, whose texts have different lengths.

    seen: the positions that a query may look at, (n,): 0 to n - 1, with all that is written.
    """

    k: list[Tensor]
    v: list[Tensor]
    positions: Tensor  # (B, 1)
    seen: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v, (B, G, 1, D); return (B, H, 1, D)."""
        B, H, _, D = q.shape
        G = k.size(1)
        rows = torch.arange(B, device=q.device)
        at = self.positions[:, 0]
        self.k[layer][rows, :, at] = k[:, :, 0]
        self.v[layer][rows, :, at] = v[:, :, 0]
        n = self.seen.size(0)
        keys = self.k[layer][:B, :, :n]  # (B, G, n, D)
        values = self.v[layer][:B, :, :n]  # (B, G, n, D)
        written = self.seen <= self.positions  # (B, n)
        if q.device.type != "cpu" or not torch.compiler.is_compiling():
            return F.scaled_dot_product_attention(
                q, keys, values, attn_mask=written[:, None, None], enable_gqa=G != H
            )
        # as sums, which the compiler joins to the operations around them
        q = q.view(B, G, H // G, D)
        scores = (q[:, :, :, None] * keys[:, :, None]).sum(-1) * D**-0.5  # (B, G, H / G, n)
        scores = scores.masked_fill(~written[:, None, None], -torch.inf)
        weights = scores.softmax(-1)
        y: Tensor = (weights[..., None] * values[:, :, None]).sum(-2)  # (B, G, H / G, D)
        return y.view(B, H, 1, D)


def tokens_looked_at(longest: int, most: int) -> int:
    """Return the multiple of BLOCK, at most `most`, that holds the longest of the texts."""
    return min(-(-longest // BLOCK) * BLOCK, most)
