"""The GPT: shapes, maths, initialisation.

Letters in the shape comments: B batch, T time (tokens), C `d_model`, H `n_head`, D head size C / H, V vocabulary.
Source: GPT-2, Radford et al. 2019, with a hidden width `d_hid` of its own.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatgot.config import ModelConfig


class KeyValueCache:
    """Keys and values of the tokens seen so far, one pair per block; each tensor (B, H, T, D)."""

    def __init__(self, n_layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    @property
    def length(self) -> int:
        return 0 if self.layers[0] is None else self.layers[0][0].size(2)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append this block's new keys and values, (B, H, T_new, D); return all of them."""
        past = self.layers[layer]
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)  # (B, H, T_past + T_new, D)
        self.layers[layer] = (k, v)
        return k, v


class Attention(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = cfg.n_head, cfg.attention_dropout
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=cfg.bias)
        self.proj = nn.Linear(cfg.d_model, cfg.d_model, bias=cfg.bias)

    def forward(self, x: Tensor, layer: int, cache: KeyValueCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # 3 x (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in (q, k, v))  # 3 x (B, H, T, D)
        causal = True
        if cache is not None:
            causal = cache.layers[layer] is None  # afterwards each new token may look at all that came before
            assert causal or T == 1, "a filled cache takes one token at a time"
            k, v = cache.extend(layer, k, v)
        dropout_p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout_p)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d_hid = cfg.d_hid or 4 * cfg.d_model
        self.norm_attention = nn.LayerNorm(cfg.d_model, eps=cfg.layer_norm_eps, bias=cfg.bias)
        self.attention = Attention(cfg)
        self.norm_mlp = nn.LayerNorm(cfg.d_model, eps=cfg.layer_norm_eps, bias=cfg.bias)
        self.up = nn.Linear(cfg.d_model, d_hid, bias=cfg.bias)
        self.down = nn.Linear(d_hid, cfg.d_model, bias=cfg.bias)
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, layer: int, cache: KeyValueCache | None = None) -> Tensor:
        x = x + F.dropout(self.attention(self.norm_attention(x), layer, cache), self.dropout, self.training)
        hidden = F.gelu(self.up(self.norm_mlp(x)))  # (B, T, d_hid); the exact erf form: faster than tanh on a CPU
        return x + F.dropout(self.down(hidden), self.dropout, self.training)  # (B, T, C)


class GPT(nn.Module):
    """A decoder-only transformer over token ids."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg, self.vocab_size, self.dropout = cfg, vocab_size, cfg.dropout
        self.recompute_every: int | None = None  # set by gradient_checkpointing.py: recompute every n-th block
        self.token_embedding = nn.Embedding(vocab_size, cfg.d_model)
        self.position_embedding = nn.Embedding(cfg.max_seq_length, cfg.d_model)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = nn.LayerNorm(cfg.d_model, eps=cfg.layer_norm_eps, bias=cfg.bias)
        self.head = nn.Linear(cfg.d_model, vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        if self.cfg.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def initialise(self, seed: int) -> None:
        """Draw the initial weights from a generator of their own: normal, residual projections scaled down.

        Source: GPT-2, section 2.3: residual layers are scaled by 1 / sqrt(number of residual layers).
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.cfg.init_range / math.sqrt(2 * self.cfg.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                std = residual_std if name.endswith(("proj.weight", "down.weight")) else self.cfg.init_range
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)  # LayerNorm's weight

    def forward(
        self, x: Tensor, y: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with targets, the mean loss in nats per token (fp32).

        x, y: (B, T) int64 with T at most `max_seq_length`; with a cache, x holds the new tokens only.
        Returns: logits (B, T, V); loss () or None.
        """
        B, T = x.shape
        past = cache.length if cache is not None else 0
        positions = torch.arange(past, past + T, device=x.device)  # (T,)
        h = self.token_embedding(x) + self.position_embedding(positions)  # (B, T, C)
        h = F.dropout(h, self.dropout, self.training)
        for layer, block in enumerate(self.layers):
            if self.recompute_every and self.training and layer % self.recompute_every == 0:
                h = checkpoint(block, h, layer, use_reentrant=False, preserve_rng_state=True)
            else:
                h = block(h, layer, cache)
        logits = self.head(self.norm(h))  # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.float().view(B * T, -1), y.reshape(B * T))

    def parameter_count(self) -> int:
        """Return the number of trained numbers; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Return the floating-point operations of forward and backward for one token.

        6 for each weight of a matrix product (head included, embeddings not) and, for causal attention,
        6 x n_layers x d_model x T. Source: Kaplan et al. 2020, arXiv:2001.08361, table 1, halved for causality.
        """
        matrices = sum(p.numel() for p in self.layers.parameters() if p.dim() >= 2) + self.head.weight.numel()
        return 6 * matrices + 6 * self.cfg.n_layers * self.cfg.d_model * self.cfg.max_seq_length


def build_model(cfg: ModelConfig, vocab_size: int, device: torch.device, seed: int) -> GPT:
    """Make a model with fresh weights: drawn on the CPU, so that they are the same on every device."""
    with torch.device("meta"):  # the modules' own initialisation costs time and draws from the global generator
        model = GPT(cfg, vocab_size)
    model.to_empty(device="cpu")
    model.tie()  # to_empty gave the head a tensor of its own
    model.initialise(seed)
    return model.to(device)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout off in training mode, and back as it was, whatever happens inside."""
    rates = ((module, getattr(module, "dropout", None)) for module in model.modules())
    before = [(module, rate) for module, rate in rates if isinstance(rate, float)]
    for module, _ in before:
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, rate in before:
            module.dropout = rate


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off, and back as they were, whatever happens inside."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
