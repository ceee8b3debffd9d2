"""The GPT model: shapes, maths, initialisation; one loop over the layers for both architectures.

Letters: B batch, T time (tokens), C `d_model`, H `n_head`, G heads of keys and values, D head size,
V vocabulary.
Sources: `gpt`: GPT-2, Radford et al. 2019. `modern`: Qwen3, arXiv:2505.09388, with RMSNorm
(arXiv:1910.07467), rotary positions (arXiv:2104.09864), SwiGLU (arXiv:2002.05202), normalised
queries and keys (arXiv:2010.04245) and grouped-query attention (arXiv:2305.13245).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from chatgot.config import ModelConfig
from chatgot.model import fewer_passes
from chatgot.model.attention import causal_attention
from chatgot.model.dropout import drop, keep_mask

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, 1, D) or (B, T, 1, D)


# Attention of one block over cached keys and values too: queries (B, H, T, D), new keys and values
# (B, G, T, D) -> (B, H, T, D)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cache(Protocol):
    """The keys and values of earlier tokens, for a model that goes on from them."""

    @property
    def positions(self) -> Tensor:
        """The positions of the new tokens, (B, T) int64."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store a layer's new keys and values; let the queries look at all (see Attend)."""
        ...


def make_norm(cfg: ModelConfig, size: int) -> nn.Module:
    """Return the architecture's normalisation over a last dimension of `size`."""
    if cfg.architecture == "modern":
        return fewer_passes.RMSNorm(size, eps=cfg.layer_norm_eps)
    return nn.LayerNorm(size, eps=cfg.layer_norm_eps, bias=cfg.bias)


def rotation(positions: Tensor, head_size: int, base: float) -> Rotation:
    """Return the rotation of tokens at some positions, (T,) or (B, T); angles grow with them.

    base: `rope_base`. Source: arXiv:2104.09864, section 3.2.2.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device) / head_size  # (D / 2,)
    wave = base**exponents  # (D / 2,)
    angle = positions[..., None] / wave  # (..., T, D / 2)
    # element i turns with element i + D / 2
    angle = torch.cat((angle, angle), dim=-1)[..., None, :]  # (..., T, 1, D)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate each pair of elements (i, i + D / 2) of queries (B, T, H, D) or keys (B, T, G, D)."""
    cosines, sines = by
    if fewer_passes.pays(x):
        y: Tensor = fewer_passes.Rotate.apply(x, cosines, sines)  # type: ignore[no-untyped-call] # untyped in torch
        return y
    lower, upper = x.chunk(2, dim=-1)  # 2 x (B, T, heads, D / 2)
    return x * cosines + torch.cat((-upper, lower), dim=-1) * sines


class Attention(nn.Module):
    """Causal self-attention; `modern` normalises queries and keys and rotates them by position.

    sizes: how many rows of `qkv` make queries, keys and values: (H x D, G x D, G x D).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        modern = cfg.architecture == "modern"
        normalised = modern and cfg.qk_norm
        bias = cfg.bias and not modern
        width = cfg.n_head * cfg.head_size
        kv_width = cfg.kv_heads * cfg.head_size
        self.head_size = cfg.head_size
        self.sizes = (width, kv_width, kv_width)
        self.dropout = cfg.attention_dropout
        self.kernel = "sdpa"  # set by GPT.use_attention
        self.qkv = nn.Linear(cfg.d_model, sum(self.sizes), bias=bias)
        self.q_norm = make_norm(cfg, cfg.head_size) if normalised else None
        self.k_norm = make_norm(cfg, cfg.head_size) if normalised else None
        self.proj = nn.Linear(width, cfg.d_model, bias=bias)

    def forward(self, x: Tensor, rotated: Rotation | None, attend: Attend | None) -> Tensor:
        """Return (B, T, C) from x (B, T, C); attend: x holds only what comes after the cache."""
        B, T, _ = x.shape
        parts = self.qkv(x).split(self.sizes, dim=-1)
        q, k, v = (
            t.view(B, T, -1, self.head_size) for t in parts
        )  # (B, T, H, D), 2 x (B, T, G, D)
        if rotated is not None:
            q = self._normalise_and_rotate(q, self.q_norm, rotated)
            k = self._normalise_and_rotate(k, self.k_norm, rotated)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, T, D), 2 x (B, G, T, D)
        if attend is not None:
            y = attend(q, k, v)  # (B, H, T, D)
        else:
            dropout = self.dropout if self.training else 0.0
            y = causal_attention(q, k, v, self.kernel, dropout)  # (B, H, T, D)
        result: Tensor = self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)
        return result

    @staticmethod
    def _normalise_and_rotate(t: Tensor, norm: nn.Module | None, rotated: Rotation) -> Tensor:
        """Return queries (B, T, H, D) or keys (B, T, G, D); in fp32 at least, dtype unchanged."""
        normal = t.to(torch.promote_types(t.dtype, torch.float32))
        if norm is not None:
            normal = norm(normal)
        return rotate(normal, rotated).to(t.dtype)


class MLP(nn.Module):
    """GELU between two matrices."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d_hid = cfg.d_hid or 4 * cfg.d_model
        self.up = nn.Linear(cfg.d_model, d_hid, bias=cfg.bias)
        self.down = nn.Linear(d_hid, cfg.d_model, bias=cfg.bias)
        self.approximate = "tanh" if cfg.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) from x (B, T, C)."""
        # the default is GELU's exact (erf) form, which is faster than its tanh form on a CPU
        hidden = F.gelu(self.up(x), approximate=self.approximate)  # (B, T, d_hid)
        result: Tensor = self.down(hidden)  # (B, T, C)
        return result


class GatedMLP(nn.Module):
    """SwiGLU: a SiLU gate on each hidden element."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        # default: about 8/3 x d_model, a multiple of 32, for about as many weights as with GELU
        d_hid = cfg.d_hid or 32 * max(1, round(cfg.d_model / 12))
        self.gate_up = nn.Linear(cfg.d_model, 2 * d_hid, bias=False)
        self.down = nn.Linear(d_hid, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) from x (B, T, C)."""
        gate_up = self.gate_up(x)  # (B, T, 2 d_hid)
        if fewer_passes.pays(gate_up):
            hidden = fewer_passes.Gate.apply(gate_up)  # type: ignore[no-untyped-call] # untyped in torch
        else:
            gate, up = gate_up.chunk(2, dim=-1)  # 2 x (B, T, d_hid)
            hidden = F.silu(gate) * up  # (B, T, d_hid)
        result: Tensor = self.down(hidden)  # (B, T, C)
        return result


class Block(nn.Module):
    """Attention, then the MLP; each reads the normalised residual stream and adds to the stream."""

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
        attend: Attend | None = None,
    ) -> Tensor:
        """Return (B, T, C) from x (B, T, C).

        keep: dropout masks of the two branches, (2, B, T, C), True: keep; None: no dropout.
        """
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        y = self.attention(self.norm_attention(x), rotated, attend)  # (B, T, C)
        x = x + drop(y, keep_attention, self.dropout)
        y = self.mlp(self.norm_mlp(x))  # (B, T, C)
        return x + drop(y, keep_mlp, self.dropout)


class GPT(nn.Module):
    """A decoder-only transformer over token ids."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.dropout = cfg.dropout
        # every n-th block recomputes its activations; set by numerics/gradient_checkpointing.py
        self.recompute_every: int | None = None
        # runs one block in training; numerics/compilation.py puts a compiled version here
        self.training_block: Callable[..., Tensor] = Block.__call__
        # of all positions: for sampling, which looks them up instead of computing them each time
        self.rotations: Rotation | None = None
        self.token_embedding = nn.Embedding(vocab_size, cfg.d_model)
        learned = cfg.architecture == "gpt"
        self.position_embedding = nn.Embedding(cfg.max_seq_length, cfg.d_model) if learned else None
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = make_norm(cfg, cfg.d_model)
        self.head = nn.Linear(cfg.d_model, vocab_size, bias=False)
        self.tie()

    @property
    def blocks(self) -> list[Block]:
        """Return the layers as a list of Blocks; a ModuleList does not know their type."""
        return cast("list[Block]", list(self.layers))

    def tie(self) -> None:
        """Let embedding and head share one matrix, if `tie_embeddings` is true."""
        if self.cfg.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def use_attention(self, kernel: str) -> None:
        """Set the attention kernel (attention.py) of all blocks."""
        for block in self.blocks:
            block.attention.kernel = kernel

    def initialise(self, seed: int) -> None:
        """Draw the initial weights from a normal distribution, smaller ones for residual layers.

        They are drawn from a generator of their own, seeded with `seed`. Biases are 0, a norm's
        weights 1.
        Source: GPT-2, section 2.3: residual layers are scaled by 1 / sqrt(number of them).
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = self.cfg.init_range / math.sqrt(2 * self.cfg.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                std = residual_std if residual else self.cfg.init_range
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)  # a norm's weight

    def forward(
        self, x: Tensor, y: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with targets, the mean loss in nats per token (fp32).

        x, y: (B, T) int64 with T at most `max_seq_length`; a target of -100 is left out.
        cache: what came before x.
        Returns: logits (B, T, V); loss () or None.
        """
        B, T = x.shape
        logits = self.head(self.hidden(x, cache))  # (B, T, V)
        if y is None:
            return logits, None
        return logits, F.cross_entropy(logits.float().view(B * T, -1), y.reshape(B * T))

    def hidden(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Return what the head reads, (B, T, C), for x (B, T); cache: what came before x."""
        h = self.token_embedding(x)  # (B, T, C)
        from_start = torch.arange(x.size(1), device=x.device)  # (T,)
        positions = from_start if cache is None else cache.positions  # (T,) or (B, T)
        rotated = self.rotation(positions)
        if self.position_embedding is not None:
            h = h + self.position_embedding(positions)  # (B, T, C)
        h = drop(h, self._keep_mask(h), self.dropout)
        for layer, block in enumerate(self.blocks):
            if self.recompute_every and self.training and layer % self.recompute_every == 0:
                h = checkpoint(
                    self.run_block, block, h, rotated, use_reentrant=False, preserve_rng_state=True
                )  # (B, T, C)
            else:
                attend = None if cache is None else partial(cache.attend, layer)
                h = self.run_block(block, h, rotated, attend)  # (B, T, C)
        normal: Tensor = self.norm(h)  # (B, T, C)
        return normal

    def run_block(
        self, block: Block, h: Tensor, rotated: Rotation | None, attend: Attend | None = None
    ) -> Tensor:
        """Draw the dropout masks of one block and run it; return (B, T, C).

        The masks are drawn here because the block itself may be compiled.
        """
        keep = self._keep_mask(h, 2)  # (2, B, T, C)
        run = self.training_block if self.training and torch.is_grad_enabled() else Block.__call__
        y: Tensor = run(block, h, keep, rotated, attend)  # (B, T, C)
        return y

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Return the rotation of tokens at these positions; None: positions are learned."""
        if self.cfg.architecture != "modern":
            return None
        if self.rotations is not None:
            cosines, sines = self.rotations
            return cosines[positions], sines[positions]
        return rotation(positions, self.cfg.head_size, self.cfg.rope_base)

    def _keep_mask(self, h: Tensor, *count: int) -> Tensor | None:
        """Draw dropout masks, (*count, *h.shape), True: keep; None: no dropout."""
        if not self.training or not self.dropout:
            return None
        return keep_mask((*count, *h.shape), self.dropout, h.device)

    def parameter_count(self) -> int:
        """Return the number of parameters; a tied embedding and head count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def trained_count(self) -> int:
        """Return the number of parameters that training changes; with LoRA, only the added ones."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def flops_per_token(self) -> int:
        """Return the floating-point operations of forward and backward for one token.

        6 for each weight in a matrix product (the head counts, embeddings do not), 4 for a frozen
        one, which has no gradient, and 6 x n_layers x n_head x head size x T for causal attention.
        Source: Kaplan et al. 2020, arXiv:2001.08361, table 1; attention halved, as it is causal.
        """
        in_blocks = [p for p in self.layers.parameters() if p.dim() >= 2]
        matrices = [*in_blocks, self.head.weight]
        products = sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)
        width = self.cfg.n_head * self.cfg.head_size
        attention = self.cfg.n_layers * width * self.cfg.max_seq_length
        return products + 6 * attention

    def flops_of_forward(self, T: int) -> int:
        """Return the floating-point operations of forward alone for one token of windows of T."""
        in_blocks = sum(p.numel() for p in self.layers.parameters() if p.dim() >= 2)
        width = self.cfg.n_head * self.cfg.head_size
        return 2 * (in_blocks + self.head.weight.numel() + self.cfg.n_layers * width * T)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out what modules draw for their weights."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def model_without_weights(cfg: ModelConfig, vocab_size: int, device: str = "meta") -> GPT:
    """Make a model of the right shapes on the "meta" device, where tensors take no memory.

    Its modules draw nothing: that would be slow, use the global generator, and, on that device,
    import the whole of torch's compiler (1 to 2 s).

    device: another one is for fake tensors, which take no memory anywhere.
    """
    with torch.device(device), _NoInitialisation():
        return GPT(cfg, vocab_size)


def build_model(cfg: ModelConfig, vocab_size: int, device: torch.device, seed: int) -> GPT:
    """Make a model with fresh weights on `device`.

    The weights are drawn on the CPU, so they are the same for every device.
    """
    with torch.device("cpu"), _NoInitialisation():  # to_empty imports sympy, which takes 0.4 s
        model = GPT(cfg, vocab_size)
    model.initialise(seed)
    return model.to(device)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout off while the block runs; the model stays in training mode."""
    modules = [m for m in model.modules() if isinstance(m, GPT | Block | Attention)]
    rates = [module.dropout for module in modules]
    for module in modules:
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, rate in zip(modules, rates, strict=True):
            module.dropout = rate


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch the model to evaluation mode, without gradients, while the block runs."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
