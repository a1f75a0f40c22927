"""AdaptiveBatchSize: the batch grows when the gradient is mostly noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import one_of, positive, whole

Test = Literal["norm", "inner_product", "augmented"]
TESTS = ("norm", "inner_product", "augmented")


@dataclass(frozen=True)
class NoiseTest:
    """What the gradients of parts of a batch say.

    Attributes:
        norm: sum over the weights of the variance of one example's gradient.
        inner: variance of its inner product with the mean gradient.
        across: sum of the variance of what is perpendicular to the mean.
        signal: squared norm of the mean gradient.
    """

    norm: float
    inner: float
    across: float
    signal: float


def noise_test(parts: Sequence[Tensor] | Tensor, examples: int = 1) -> NoiseTest:
    """Variances between the gradients of parts, of one example each or of a micro-batch or rank of `examples`.

    A mean of `examples` gradients varies `examples` times less than one of them; unbiased (division by parts - 1).

    Args:
        parts: shape (parts, weights), at least two parts, the whole network's weights in a row.
        examples: of each part.

    Raises:
        ValueError: fewer than two parts.

    Example:
        >>> noise_test(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        NoiseTest(norm=2.0, inner=8.0, across=0.0, signal=4.0)
    """
    rows = torch.stack(list(parts)) if not isinstance(parts, Tensor) else parts
    if rows.ndim != 2 or rows.shape[0] < 2:
        raise ValueError(f"parts must be of shape (parts, weights) with two parts or more, got {tuple(rows.shape)}")
    examples = whole("examples", examples, least=1)
    rows = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
    mean = rows.mean(0)
    signal = mean.square().sum()
    inner = rows @ mean
    across = rows - inner.unsqueeze(1) * mean / torch.where(signal > 0, signal, 1)
    variances = torch.stack([rows.var(0).sum(), inner.var(), across.var(0).sum()]) * examples
    of_norm, of_inner, of_across = variances.tolist()
    return NoiseTest(of_norm, of_inner, of_across, signal.item())


class AdaptiveBatchSize:
    """The batch grows until its mean gradient is told apart from noise.

    With the variances of single examples' gradients (see `NoiseTest`) and the mean gradient g, the batch that passes the test:

        norm: `norm / (eta^2 |g|^2)`;  inner_product: `inner / (theta^2 |g|^4)`;
        augmented: the greater of that and `across / (nu^2 |g|^2)`

    rounded up. It never shrinks.

    Args:
        start: first batch size; 1 or more.
        maximum: it grows no further; `start` or more.
        eta, theta, nu: how much noise is borne; above 0. Default 0.1 each (paper).
        test: "norm" (default), "inner_product" or "augmented".
        every: calls of `update` between tests; 1 or more. Default 1.

    Raises:
        ValueError: a number is out of range, or the test is unknown.

    Attributes:
        size: the batch size now.

    Give a new size to the loader (`follow(sampler)` for one with a `batch_size`), or raise the micro-batches of a step:
    `accumulate(micro)`. AdaGrad's rate needs no change with it; for SGD see `trimtab.optimizers.scale_learning_rate`.

    Reference: Lau, Liu, Kolar, AdAdaGrad, arXiv 2402.11215.

    Example:
        >>> schedule = AdaptiveBatchSize(start=2, maximum=100)
        >>> schedule.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # 2 / (0.01 * 4)
        50
        >>> schedule.accumulate(micro=16)
        4
    """

    def __init__(
        self,
        start: int,
        maximum: int,
        eta: float = 0.1,
        test: Test = "norm",
        *,
        theta: float = 0.1,
        nu: float = 0.1,
        every: int = 1,
    ) -> None:
        self.start = whole("start", start, least=1)
        self.maximum = whole("maximum", maximum, least=self.start)
        self.eta, self.theta, self.nu = positive("eta", eta), positive("theta", theta), positive("nu", nu)
        self.test = one_of("test", test, TESTS)
        self.every = whole("every", every, least=1)
        self.size, self.calls = self.start, 0
        self._samplers: list[Any] = []

    def needed(self, found: NoiseTest) -> float:
        """The batch that passes the test; infinite where there is no signal."""
        if not found.signal > 0:
            return math.nan if math.isnan(found.signal) else math.inf
        if self.test == "norm":
            return found.norm / (self.eta**2 * found.signal)
        inner = found.inner / (self.theta**2 * found.signal**2)
        return inner if self.test == "inner_product" else max(inner, found.across / (self.nu**2 * found.signal))

    def update(self, parts: Sequence[Tensor] | Tensor | NoiseTest, examples: int = 1) -> int:
        """Test the gradients of parts (see `noise_test`), grow, and return the size; what is not finite changes nothing."""
        due, self.calls = self.calls % self.every == 0, self.calls + 1
        if due:
            found = parts if isinstance(parts, NoiseTest) else noise_test(parts, examples)
            needed = self.needed(found)
            if not math.isnan(needed):
                grown = self.maximum if needed >= self.maximum else math.ceil(needed)
                self.size = max(self.size, grown)
                for sampler in self._samplers:
                    sampler.batch_size = self.size
        return self.size

    def follow(self, sampler: Any) -> AdaptiveBatchSize:
        """Let a batch sampler's `batch_size` follow.

        Raises:
            TypeError: it has none that is a whole number and may be set.

        Example:
            >>> from torch.utils.data import BatchSampler, SequentialSampler
            >>> sampler = BatchSampler(SequentialSampler(range(9)), 2, drop_last=False)
            >>> schedule = AdaptiveBatchSize(2, 4).follow(sampler)
            >>> _ = schedule.update(torch.tensor([[1.0], [-1.0]]))
            >>> next(iter(sampler))
            [0, 1, 2, 3]
        """
        held = getattr(sampler, "batch_size", None)
        fits = isinstance(held, int) and not isinstance(held, bool) and not hasattr(sampler, "collate_fn")
        if fits:
            try:
                sampler.batch_size = self.size
            except AttributeError:  # it may be read alone
                fits = False
        if not fits:
            raise TypeError(
                f"a batch size that grows needs a batch sampler with a batch_size that may be set, got "
                f"{type(sampler).__name__}; give DataLoader(batch_sampler=BatchSampler(...)), or raise the micro-batches "
                "by accumulate()"
            )
        self._samplers.append(sampler)
        return self

    def accumulate(self, micro: int) -> int:
        """Micro-batches of that size that make a batch of at least the size now."""
        return math.ceil(self.size / whole("micro", micro, least=1))

    def state_dict(self) -> dict[str, Any]:
        """Size and calls."""
        return {"size": self.size, "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.size, self.calls = int(state["size"]), int(state["calls"])
        for sampler in self._samplers:
            sampler.batch_size = self.size

    def __repr__(self) -> str:
        return f"AdaptiveBatchSize(start={self.start}, maximum={self.maximum}, test={self.test!r}, size={self.size})"
