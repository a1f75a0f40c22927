"""First weights of a vision tower that let it see small things: the pictures' own patches, whitened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import unfold

from trimtab.medclm.training.sights import normalised

SPREAD = 0.5
"""Standard deviation of each feature of a patch (ours)."""
MOST = 512
"""Pictures that are looked at, spread evenly (ours)."""


@torch.no_grad()
def whiten_(tower: Any, pictures: Tensor) -> None:
    """Set the patch embedding of a `CLIPVisionModel` to the whitened principal components of the pictures' patches.

    z = s R (L + l I)^(-1/2) V' (x - mean), with L, V the largest eigenvalues of the patches' covariance and their vectors, as
    many as there are features, l the least of these, R a random rotation, s = 0.5; the mean goes into the position embeddings.

    In an X-ray the brightness of a patch varies ten thousand times as much as a small nodule does in it, and with random
    weights LayerNorm keeps that ratio. Whitened, what is small counts as much as what is large. [ours]

    Args:
        tower: its embeddings are changed in place; the rotation comes from torch's own generator.
        pictures: (n, 3, side, side) in 0 to 255.
    """
    places = torch.arange(0, len(pictures), max(len(pictures) // MOST, 1))
    embeddings = tower.embeddings
    weight, size = embeddings.patch_embedding.weight, tower.config.patch_size
    pixels = weight[0].numel()
    total, square, count = torch.zeros(pixels), torch.zeros(pixels, pixels), 0
    for some in torch.split(places, 64):
        patches = unfold(normalised(pictures[some]), size, stride=size).transpose(1, 2).reshape(-1, pixels)
        total, square, count = total + patches.sum(0), square + patches.T @ patches, count + len(patches)
    mean = total / count
    values, vectors = (one.float() for one in torch.linalg.eigh((square / count - mean[:, None] * mean).double()))
    features = len(weight)
    largest, axes = values[-features:].clamp(min=0), vectors[:, -features:]
    scale = (largest + largest[0]).clamp(min=1e-6 * float(largest[-1]) + 1e-12).rsqrt()
    rotation, _ = torch.linalg.qr(torch.randn(features, features))
    whitening = SPREAD * rotation @ (axes * scale).T
    weight.copy_(whitening.view_as(weight))
    embeddings.position_embedding.weight[1:] -= (whitening @ mean).to(embeddings.position_embedding.weight)
