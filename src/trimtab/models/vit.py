"""A compact Vision Transformer for small images (Dosovitskiy et al. 2020, arXiv 2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.checks import whole


class SelfAttention(nn.Module):
    """Multi-head self-attention with one Linear each for query, key, value and output.

    Separate matrices, so that a lever or a pruning score sees each as a layer of its own.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim={dim} and heads={heads}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, dim) -> (N, tokens, dim)."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Attention and a two-layer perceptron (GELU, four times as wide), each after a LayerNorm, each added.

    `attention` takes the place of plain self-attention of so many heads.
    """

    def __init__(self, dim: int, heads: int, attention: SelfAttention | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads) if attention is None else attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(N, tokens, dim) -> (N, tokens, dim)."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, `depth` encoder layers, LayerNorm, one Linear on the class token.

    Initial values: Linear weights, class token and positions from a normal of standard deviation 0.02 cut at two
    deviations (as is usual for ViT), biases 0; the patch convolution as a Linear of the same shape.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: height and width, or one number for both. Default 32.
        dim: size of a token. Default 192 (the "tiny" width).
        depth: encoder layers. Default 6 [ours: half of ViT-Tiny's 12, for 32 x 32].
        heads: attention heads. Default 3.
        patch: side of a patch. Default 4, so 64 patches at 32 x 32 [ours].

    Raises:
        ValueError: a side that is not a multiple of `patch`, or `dim` not a multiple of `heads`.

    Example:
        >>> net = VisionTransformer(num_classes=10, dim=32, depth=2, heads=2)
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        patch: int = 4,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"image_size {height} x {width} must be a multiple of patch={patch}; choose another patch")
        whole("depth", depth, 1)
        self.image_size = (height, width)
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (height // patch) * (width // patch), dim))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02, a=-0.04, b=0.04)
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, height, width) -> logits (N, num_classes)."""
        if tuple(x.shape[-2:]) != self.image_size:
            raise ValueError(f"this network was built for images of {self.image_size}, got {tuple(x.shape)}")
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens))[:, 0])
        return logits
