"""NoProp: blocks learn apart from each other, each to take noise off the label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.checks import positive, whole


class NoProp(nn.Module):
    """A classifier of T blocks, each trained by a loss of its own, without a backward pass from one to the next.

    The label's embedding u is hidden in noise: `z_t = sqrt(abar_t) u + sqrt(1 - abar_t) e`, from `z_0`, nearly noise, to `z_T`,
    nearly u. Block t sees `z_{t-1}` and the input x and guesses u; its loss is
    `(T / 2) eta (SNR_t - SNR_{t-1}) ||block_t(z_{t-1}, x) - u||^2`, `SNR = abar / (1 - abar)`. A linear head reads the class
    off `z_T` by cross-entropy. To predict, noise goes through all blocks:
    `z_t = a_t block_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) e`, the posterior's mean and variance.

    Args:
        blocks: T modules, `block(z, x)` of the shape of z: (examples, features).
        embeddings: one row of features for each class, such as `torch.eye(classes)`; they stay as they are.
        eta: above 0. Default 0.1 (paper).

    The noise is the cosine schedule `abar_t = cos^2(pi/2 (s + offset) / (1 + offset))`, `s = 1 - t / T`, offset 0.008 [ours, in
    this form]. Losses of blocks never meet: each depends on its block's weights alone, so that blocks can be trained one after
    the other, at once, or on different machines.

    Raises:
        ValueError: no block, embeddings that are no matrix, or a number out of range; (at a call) labels out of range.

    Reference: Li, Teh, Pascanu, arXiv 2503.24322 (the discrete-time form).

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.line = nn.Linear(3 + 5, 3)
        ...     def forward(self, z, x):
        ...         return self.line(torch.cat([z, x], 1))
        >>> net = NoProp([Block(), Block()], torch.eye(3))
        >>> net.loss(torch.ones(4, 5), torch.tensor([0, 1, 2, 0])).shape, net(torch.ones(4, 5)).shape
        (torch.Size([]), torch.Size([4, 3]))
    """

    embeddings: Tensor
    signal: Tensor

    def __init__(self, blocks: Sequence[nn.Module], embeddings: Tensor, eta: float = 0.1) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("NoProp needs at least one block")
        if embeddings.ndim != 2 or len(embeddings) < 2:
            raise ValueError(f"embeddings must have the shape (classes, features), got {tuple(embeddings.shape)}")
        self.eta = positive("eta", eta)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(embeddings.shape[1], len(embeddings))
        self.register_buffer("embeddings", embeddings.detach().clone())
        self.signal = cosine_signal(len(blocks))  # no buffer: in half precision its end would round to 1, SNR infinite

    def noised(self, labels: Tensor, t: int, generator: torch.Generator | None = None) -> Tensor:
        """`z_t` of these labels."""
        clean = self.embeddings[labels]
        noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        signal = float(self.signal[t])
        return math.sqrt(signal) * clean + math.sqrt(1 - signal) * noise

    def local_loss(self, x: Tensor, labels: Tensor, t: int, generator: torch.Generator | None = None) -> Tensor:
        """The loss of block t, counted from 1, mean over examples.

        Raises:
            ValueError: no such block, or labels that are no classes.
        """
        whole("t", t, 1, len(self.blocks))
        self._check(labels)
        guess = self.blocks[t - 1](self.noised(labels, t - 1, generator), x)
        weight = float(local_weights(self.signal / (1 - self.signal), self.eta)[t - 1])
        found: Tensor = weight * (guess - self.embeddings[labels]).square().sum(1).mean()
        return found

    def loss(self, x: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """All local losses, and the head's cross-entropy on `z_T`."""
        self._check(labels)
        blocks = [self.local_loss(x, labels, t, generator) for t in range(1, len(self.blocks) + 1)]
        read = self.head(self.noised(labels, len(self.blocks), generator))
        return torch.stack([*blocks, functional.cross_entropy(read, labels)]).sum()

    @torch.no_grad()
    def forward(self, x: Tensor, generator: torch.Generator | None = None, *, noise: bool = True) -> Tensor:
        """Logits (examples, classes), from noise through all blocks; with `noise=False` without the noise on the way."""
        shape = (len(x), self.embeddings.shape[1])
        place = {"device": self.embeddings.device, "dtype": self.embeddings.dtype}
        z = torch.randn(shape, generator=generator, **place)  # type: ignore[call-overload]
        for t, block in enumerate(self.blocks, 1):
            to_guess, to_state, variance = posterior(float(self.signal[t - 1]), float(self.signal[t]))
            z = to_guess * block(z, x) + to_state * z
            if noise:
                z = z + math.sqrt(variance) * torch.randn(shape, generator=generator, **place)  # type: ignore[call-overload]
        logits: Tensor = self.head(z)
        return logits

    def _check(self, labels: Tensor) -> None:
        if (
            labels.ndim != 1
            or labels.is_floating_point()
            or bool(((labels < 0) | (labels >= len(self.embeddings))).any())
        ):
            raise ValueError(f"labels must be classes below {len(self.embeddings)}, of the shape (examples,)")


def cosine_signal(blocks: int, offset: float = 0.008) -> Tensor:
    """`abar_0 .. abar_T`, from nearly 0 to nearly 1; float64.

    Example:
        >>> [round(one, 3) for one in cosine_signal(2).tolist()]
        [0.0, 0.494, 1.0]
    """
    noise = 1 - torch.arange(blocks + 1, dtype=torch.float64) / blocks
    return (math.pi / 2 * (noise + offset) / (1 + offset)).cos().square()


def local_weights(snr: Tensor, eta: float = 0.1) -> Tensor:
    """`(T / 2) eta (SNR_t - SNR_{t-1})` of the T blocks, from the T + 1 ratios.

    Example:
        >>> local_weights(torch.tensor([0.0, 0.5, 2.0, 9.0]))
        tensor([0.0750, 0.2250, 1.0500])
    """
    return (len(snr) - 1) / 2 * eta * snr.diff()


def posterior(before: float, after: float) -> tuple[float, float, float]:
    """Mean and variance of `z_t` where `z_{t-1}` and u are known: weights of u and of `z_{t-1}`, and the variance.

    Args:
        before, after: `abar_{t-1}` and `abar_t`.

    Example:
        >>> [round(one, 3) for one in posterior(0.0, 0.5)]  # z_0 was noise: z_1 as it is drawn
        [0.707, 0.0, 0.5]
    """
    kept = before / after
    return (
        math.sqrt(after) * (1 - kept) / (1 - before),
        math.sqrt(kept) * (1 - after) / (1 - before),
        (1 - after) * (1 - kept) / (1 - before),
    )
