"""A small GPT that reads bytes: a decoder-only transformer with rotary positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.models.vit import EncoderLayer, SelfAttention

BASE = 10_000.0
"""Wavelengths of the rotary positions go from 2 pi to this times 2 pi (arXiv 2104.09864)."""


class CausalAttention(SelfAttention):
    """Self-attention in which a token sees itself and what stands before it; queries and keys turned by their position.

    Rotary positions (arXiv 2104.09864): the pair `(x_i, x_{i + d/2})` of a head's `d` numbers is turned by the angle
    `t * BASE^(-2 i / d)` at position t, so that a product of query and key depends on their distance alone. No weight
    belongs to a position, so that none is pruned, decayed or counted.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, dim: int, heads: int, length: int) -> None:
        super().__init__(dim, heads)
        size = dim // heads
        if size % 2:
            raise ValueError(f"dim / heads must be even for rotary positions, got dim={dim} and heads={heads}")
        rates = BASE ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), rates)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)

    def _turned(self, x: Tensor) -> Tensor:
        """(N, heads, tokens, size), each token turned by its position."""
        one, other = x.chunk(2, dim=-1)
        cosine, sine = (part[: x.shape[-2]].to(x.dtype) for part in (self.cosine, self.sine))
        return torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, dim) -> (N, tokens, dim)."""
        query, key = self._turned(self._split(self.query(x))), self._turned(self._split(self.key(x)))
        mixed = F.scaled_dot_product_attention(query, key, self._split(self.value(x)), is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class ByteGPT(nn.Module):
    """Predicts the next byte of a text: embedding, `depth` causal layers, LayerNorm, one Linear to the bytes.

    Layers are those of the `VisionTransformer` here (LayerNorm before, GELU, perceptron four times as wide) with causal
    attention and rotary positions. Initial values as GPT-2's: normal of deviation 0.02, biases 0, the two matrices that end
    a layer divided by `sqrt(2 depth)`. No dropout.

    With `tied` the embedding and the last Linear are one matrix, as in GPT-2: every lever and every pruning touches it
    once, under the name `embedding.weight`, and it is pruned like the others. Without, they are two.

    Args:
        num_classes: different bytes, 256.
        length: longest text in bytes.
        dim: size of a token. Default 160 [ours].
        depth: layers. Default 4 [ours]: 1.28 million weights.
        heads: attention heads. Default 5, of 32 numbers [ours].
        tied: one matrix for embedding and output. Default True.

    Raises:
        ValueError: a size below 1, `dim` not a multiple of `heads`, an odd size of a head; (when called) a text that is too
            long, or no text.

    Example:
        >>> net = ByteGPT(num_classes=256, length=16, dim=32, depth=2, heads=2)
        >>> net(torch.zeros(3, 16, dtype=torch.long)).shape
        torch.Size([3, 16, 256])
    """

    def __init__(
        self, num_classes: int, length: int, dim: int = 160, depth: int = 4, heads: int = 5, *, tied: bool = True
    ) -> None:
        super().__init__()
        for label, value in (("length", length), ("dim", dim), ("depth", depth), ("heads", heads)):
            whole(label, value, 1)
        self.length = length
        self.embedding = nn.Embedding(num_classes, dim)
        self.layers = nn.Sequential(
            *(EncoderLayer(dim, heads, CausalAttention(dim, heads, length)) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                last = name.endswith((".attention.out", ".mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / (math.sqrt(2 * depth) if last else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Bytes (N, tokens), int64 -> logits of the byte that follows each (N, tokens, num_classes)."""
        if x.ndim != 2 or x.is_floating_point() or not 1 <= x.shape[1] <= self.length:
            raise ValueError(
                f"this network reads whole numbers of the shape (N, 1 to {self.length} bytes), got {x.dtype} {tuple(x.shape)}"
            )
        logits: Tensor = self.head(self.norm(self.layers(self.embedding(x))))
        return logits
