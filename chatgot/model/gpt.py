"""The GPT: shapes, maths, initialisation; one layer loop for both architectures.

Letters in the shape comments: B batch, T time (tokens), C `d_model`, H `n_head`, D head size C / H, V vocabulary.
Sources: `gpt`: GPT-2, Radford et al. 2019. `modern`: Qwen3, arXiv:2505.09388, with RMSNorm (arXiv:1910.07467), rotary
positions (arXiv:2104.09864), SwiGLU (arXiv:2002.05202) and normalised queries and keys (arXiv:2010.04245).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatgot.config import ModelConfig
from chatgot.model.attention import causal_attention
from chatgot.model.dropout import drop, keep_mask

ROTARY_BASE = (
    10_000.0  # of the slowest rotation's wave length, in tokens; arXiv:2104.09864, section 3.2.2
)
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, 1, D)


class KeyValueCache:
    """Keys and values of the tokens that one block has seen so far; each tensor (B, H, T, D)."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.k is None else self.k.size(2)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values, (B, H, T_new, D); return all of them."""
        if self.k is not None:
            k, v = (
                torch.cat((self.k, k), dim=2),
                torch.cat((self.v, v), dim=2),
            )  # (B, H, T_past + T_new, D)
        self.k, self.v = k, v
        return k, v


def make_norm(cfg: ModelConfig, size: int) -> nn.Module:
    """Return the architecture's normalisation over a last dimension of `size`."""
    if cfg.architecture == "modern":
        return nn.RMSNorm(size, eps=cfg.layer_norm_eps)
    return nn.LayerNorm(size, eps=cfg.layer_norm_eps, bias=cfg.bias)


def rotation(past: int, T: int, head_size: int, device: torch.device) -> Rotation:
    """Return the rotation of T tokens that follow `past` others: the angle of pair i grows with the position."""
    wave = ROTARY_BASE ** (torch.arange(0, head_size, 2, device=device) / head_size)  # (D / 2,)
    angle = torch.arange(past, past + T, device=device)[:, None] / wave  # (T, D / 2)
    angle = torch.cat((angle, angle), dim=-1)[
        :, None
    ]  # (T, 1, D): element i turns with element i + D / 2
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (i, i + D / 2) of queries or keys (B, T, H, D) by its angle."""
    first, second = x.chunk(2, dim=-1)
    return x * by[0] + torch.cat((-second, first), dim=-1) * by[1]


class Attention(nn.Module):
    """Causal self-attention of all heads; in `modern`, queries and keys are normalised and turned by their position."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = cfg.n_head, cfg.attention_dropout
        self.kernel = "sdpa"  # set by GPT.use_attention
        modern = cfg.architecture == "modern"
        bias, head_size = cfg.bias and not modern, cfg.d_model // cfg.n_head
        self.qkv = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=bias)
        self.q_norm = make_norm(cfg, head_size) if modern else None
        self.k_norm = make_norm(cfg, head_size) if modern else None
        self.proj = nn.Linear(cfg.d_model, cfg.d_model, bias=bias)

    def forward(self, x: Tensor, rotated: Rotation | None, cache: KeyValueCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.n_head, -1) for t in self.qkv(x).chunk(3, dim=-1)
        )  # 3 x (B, T, H, D)
        if rotated is not None:
            q, k = (
                rotate(norm(t.float()), rotated).to(v.dtype)
                for norm, t in ((self.q_norm, q), (self.k_norm, k))
            )
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # 3 x (B, H, T, D)
        past = 0 if cache is None else cache.length
        if cache is not None:
            k, v = cache.extend(k, v)  # 2 x (B, H, T_past + T, D)
        if past:
            assert T == 1, "a filled cache takes one token at a time"
            y = F.scaled_dot_product_attention(
                q, k, v
            )  # (B, H, 1, D): it may look at all that came before
        else:
            y = causal_attention(
                q, k, v, self.kernel, self.dropout if self.training else 0.0
            )  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class MLP(nn.Module):
    """GELU between two matrices."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d_hid = cfg.d_hid or 4 * cfg.d_model
        self.up = nn.Linear(cfg.d_model, d_hid, bias=cfg.bias)
        self.down = nn.Linear(d_hid, cfg.d_model, bias=cfg.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(
            F.gelu(self.up(x))
        )  # hidden: (B, T, d_hid); the exact erf form: faster than tanh on a CPU


class GatedMLP(nn.Module):
    """SwiGLU: a SiLU gate beside each hidden element."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d_hid = cfg.d_hid or 32 * max(
            1, round(cfg.d_model / 12)
        )  # 8/3 x d_model: about as many weights as with GELU
        self.gate_up = nn.Linear(cfg.d_model, 2 * d_hid, bias=False)
        self.down = nn.Linear(d_hid, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # 2 x (B, T, d_hid)
        return self.down(F.silu(gate) * up)  # (B, T, C)


class Block(nn.Module):
    """Attention, then the MLP, each on a normalised residual stream and added to it."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.norm_attention = make_norm(cfg, cfg.d_model)
        self.attention = Attention(cfg)
        self.norm_mlp = make_norm(cfg, cfg.d_model)
        self.mlp = GatedMLP(cfg) if cfg.architecture == "modern" else MLP(cfg)
        self.dropout = cfg.dropout

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None,
        rotated: Rotation | None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return (B, T, C) from x (B, T, C); keep: which elements of the two branches stay, (2, B, T, C)."""
        of_attention, of_mlp = (None, None) if keep is None else keep
        x = x + drop(
            self.attention(self.norm_attention(x), rotated, cache), of_attention, self.dropout
        )
        return x + drop(self.mlp(self.norm_mlp(x)), of_mlp, self.dropout)


class GPT(nn.Module):
    """A decoder-only transformer over token ids."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg, self.vocab_size, self.dropout = cfg, vocab_size, cfg.dropout
        self.recompute_every: int | None = (
            None  # set by gradient_checkpointing.py: recompute every n-th block
        )
        self.training_block = (
            Block.__call__
        )  # compilation.py puts a compiled one here, which runs in training only
        self.token_embedding = nn.Embedding(vocab_size, cfg.d_model)
        learned = cfg.architecture == "gpt"
        self.position_embedding = nn.Embedding(cfg.max_seq_length, cfg.d_model) if learned else None
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = make_norm(cfg, cfg.d_model)
        self.head = nn.Linear(cfg.d_model, vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        if self.cfg.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def use_attention(self, kernel: str) -> None:
        """Compute attention by `kernel` (attention.py) in all blocks."""
        for block in self.layers:
            block.attention.kernel = kernel

    def initialise(self, seed: int) -> None:
        """Draw the initial weights from a generator of their own: normal, residual projections scaled down.

        Source: GPT-2, section 2.3: residual layers are scaled by 1 / sqrt(number of residual layers).
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.cfg.init_range / math.sqrt(2 * self.cfg.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                std = (
                    residual_std
                    if name.endswith(("proj.weight", "down.weight"))
                    else self.cfg.init_range
                )
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)  # a norm's weight

    def forward(
        self, x: Tensor, y: Tensor | None = None, caches: list[KeyValueCache] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with targets, the mean loss in nats per token (fp32).

        x, y: (B, T) int64 with T at most `max_seq_length`; with caches, one for each block, x holds new tokens only.
        Returns: logits (B, T, V); loss () or None.
        """
        B, T = x.shape
        past = caches[0].length if caches is not None else 0
        h = self.token_embedding(x)  # (B, T, C)
        rotated = self.rotation(past, T, x.device)
        if self.position_embedding is not None:
            h = h + self.position_embedding(
                torch.arange(past, past + T, device=x.device)
            )  # (B, T, C)
        h = drop(h, self._keep_mask(h), self.dropout)
        for layer, block in enumerate(self.layers):
            if self.recompute_every and self.training and layer % self.recompute_every == 0:
                h = checkpoint(
                    self.run_block, block, h, rotated, use_reentrant=False, preserve_rng_state=True
                )
            else:
                h = self.run_block(block, h, rotated, caches[layer] if caches is not None else None)
        logits = self.head(self.norm(h))  # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.float().view(B * T, -1), y.reshape(B * T))

    def run_block(
        self, block: Block, h: Tensor, rotated: Rotation | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Draw what one block drops, and run it; the draws stay out of what is compiled."""
        keep = self._keep_mask(h, 2)
        run = self.training_block if self.training and torch.is_grad_enabled() else Block.__call__
        return run(block, h, keep, rotated, cache)  # (B, T, C)

    def rotation(self, past: int, T: int, device: torch.device) -> Rotation | None:
        """Return what queries and keys of T tokens after `past` others are turned by; None: positions are learned."""
        modern = self.cfg.architecture == "modern"
        return rotation(past, T, self.cfg.d_model // self.cfg.n_head, device) if modern else None

    def _keep_mask(self, h: Tensor, *count: int) -> Tensor | None:
        return (
            keep_mask((*count, *h.shape), self.dropout, h.device)
            if self.training and self.dropout
            else None
        )

    def parameter_count(self) -> int:
        """Return the number of trained numbers; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> int:
        """Return the floating-point operations of forward and backward for one token.

        6 for each weight of a matrix product (head included, embeddings not) and, for causal attention,
        6 x n_layers x d_model x T. Source: Kaplan et al. 2020, arXiv:2001.08361, table 1, halved for causality.
        """
        matrices = (
            sum(p.numel() for p in self.layers.parameters() if p.dim() >= 2)
            + self.head.weight.numel()
        )
        return 6 * matrices + 6 * self.cfg.n_layers * self.cfg.d_model * self.cfg.max_seq_length


def build_model(cfg: ModelConfig, vocab_size: int, device: torch.device, seed: int) -> GPT:
    """Make a model with fresh weights: drawn on the CPU, so that they are the same on every device."""
    with torch.device(
        "meta"
    ):  # the modules' own initialisation costs time and draws from the global generator
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
