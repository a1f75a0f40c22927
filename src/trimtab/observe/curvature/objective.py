"""The loss of a network on fixed batches as a function of its parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from trimtab.checks import one_of
from trimtab.collectives import is_sharded, sum_over_ranks
from trimtab.observe.curvature.counting import Counted, counted, reduction_of
from trimtab.observe.curvature.data import Batch, Batches, Count, Loss
from trimtab.observe.curvature.intact import RandomState, intact
from trimtab.observe.curvature.results import Setting
from trimtab.parameters import Rule, entries, select
from trimtab.parameters.arguments import arguments
from trimtab.parameters.kinds import check_ready
from trimtab.parameters.wrappers import unwrapped

POLICIES = ("frozen", "batch")


class Objective:
    """The loss of `model` on `batches` as a function of its parameters, computed beside the model, never in it.

    `L(w) = sum_b c_b loss(model_w(x_b), y_b) / sum_b c_b` for a mean loss, with `c_b` what the loss divides by in batch b
    (its samples, entries or weights); `L(w) = sum_b loss(model_w(x_b), y_b)` for a summed one. Sums run over all batches and,
    inside a process group, over all ranks, each with its own batches.

    Parameters and buffers are copied when the objective is made: it stays the loss of that moment while training goes
    on. Everything is evaluated in evaluation mode (no dropout), outside autocast, without compiled or parallel wrappers and
    without the fast path of `nn.TransformerEncoder`: value and derivatives are of one function.

    Args:
        model: the network, on one device.
        loss: `loss(outputs, targets)`, a scalar.
        batches: one pair `(inputs, targets)`, or a collection of pairs that repeats itself (a list, a DataLoader that
            does not augment). Inputs: a tensor, a tuple of arguments or a mapping of keyword arguments.
        rule: which parameters are coordinates. Default: all trainable ones, biases too; the others are constants.
        batch_norm: "frozen" (default): layers use their running statistics, as in evaluation; the network is one function
            of each sample. "batch": they normalise by each batch, as in training; running statistics stay as they are.
        reduction: "mean" or "sum", how `loss` reduces. Default: `loss.reduction` where it has one, else "mean".
        count: what a mean loss divides by, as a function of the targets. Default, for PyTorch's losses: what they do, for
            cross-entropy with class indices the total weight of the targets that are not ignored, for squared errors and
            other element-wise ones the targets' entries; for a loss that is not known the number of samples, with a
            warning where batches differ in more than that.
        dtype: of the computation: float32 or float64. Default: float64 for float64 parameters, else float32, so that
            bfloat16 networks are computed in float32 [ours].

    Raises:
        ValueError: no parameter is chosen, an unknown policy, a loss that is not finite, sharded parameters, several devices.
        TypeError: batches that cannot be read twice, a loss that is not a scalar tensor.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> data = (torch.ones(4, 1), torch.zeros(4, 1))
        >>> objective = Objective(net, nn.functional.mse_loss, data)
        >>> objective.loss() == nn.functional.mse_loss(net(data[0]), data[1]).item()
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Any,
        *,
        rule: Rule | None = None,
        batch_norm: str = "frozen",
        reduction: str | None = None,
        count: Count | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        one_of("batch_norm", batch_norm, POLICIES)
        self.model = unwrapped(model)
        check_ready(self.model)
        self.entries = select(self.model, Rule(min_ndim=0) if rule is None else rule).chosen
        if not self.entries:
            raise ValueError("no parameter of the model was chosen by the rule: there is nothing to differentiate by")
        self.device = self._one_device()
        self.dtype = _computation_dtype([entry.parameter for entry in self.entries], dtype)
        chosen = {id(entry.parameter) for entry in self.entries}
        keys = {id(parameter): name for name, parameter in self.model.named_parameters()}  # wrapped parts and all
        self._keys = [keys[id(entry.parameter)] for entry in self.entries]
        self._constants = {
            keys[id(e.parameter)]: self._copy(e.parameter) for e in entries(self.model) if id(e.parameter) not in chosen
        }
        self._buffers = {name: self._copy(buffer) for name, buffer in self.model.named_buffers()}
        self.weights = [self._copy(entry.parameter) for entry in self.entries]
        self.size = sum(weight.numel() for weight in self.weights)
        self._loss, self._count = loss, count
        self._doubted = False
        self.reduction = reduction_of(loss, reduction)
        normalizes = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if batch_norm == "batch" and any(isinstance(module, nn.SyncBatchNorm) for module in normalizes):
            raise ValueError("SyncBatchNorm has no double backward by batch statistics; use batch_norm='frozen'")
        self.batch_norm = batch_norm if normalizes else "none"
        self.batches = Batches(batches, self.device, self.dtype)
        self.samples, self.number_of_batches = 0.0, 0
        self._random = RandomState(self.device)

    def _one_device(self) -> torch.device:
        devices = {tensor.device for tensor in (*self.model.parameters(), *self.model.buffers())}
        if len(devices) > 1:
            raise ValueError(f"the model must lie on one device, got {sorted(map(str, devices))}")
        for entry in self.entries:
            if is_sharded(entry.parameter):
                raise ValueError(f"parameter {entry.name} is sharded; curvature needs whole parameters on each rank")
        return devices.pop()

    def _copy(self, tensor: Tensor) -> Tensor:
        with torch.inference_mode(mode=False):
            kind = self.dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(kind, copy=True)

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector of shape (size,) from tensors in the order and of the shapes of the parameters."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def split(self, vector: Tensor) -> list[Tensor]:
        """The vector's parts, as tensors of the parameters' shapes."""
        vector = vector.to(self.device, self.dtype)
        if vector.is_inference():  # autograd cannot take such a tensor
            with torch.inference_mode(mode=False):
                vector = vector.clone()
        parts = torch.split(vector, [weight.numel() for weight in self.weights])
        return [part.view(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]

    def tensors(self) -> list[Tensor]:
        """Everything the network computes with: chosen parameters, the others, buffers."""
        return [*self.weights, *self._constants.values(), *self._buffers.values()]

    @contextmanager
    def evaluating(self, *, plain_kernels: bool = False) -> Iterator[None]:
        """Where the model may be called: it is intact afterwards, and every entry draws the same random numbers.

        `plain_kernels`: fused attention by the MATH backend, RNNs without cuDNN, for second derivatives and `vmap`.
        """
        with ExitStack() as stack:
            stack.enter_context(intact(self.model, batch_statistics=self.batch_norm == "batch"))
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(_one_attention())
            if plain_kernels:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if self.device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in self.model.modules()):
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its RNNs have no double backward
            self._random.set()
            yield

    def outputs(self, parameters: Sequence[Tensor], batch: Batch) -> Any:
        """What the network gives for the batch's inputs with these parameters; call inside `evaluating`."""
        named = dict(zip(self._keys, parameters, strict=True))
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        positional, keywords = arguments(batch[0])
        return functional_call(self.model, {**self._constants, **buffers, **named}, positional, keywords)

    def scalar(self, outputs: Any, batch: Batch) -> Tensor:
        """The loss of the outputs on the batch, checked to be a scalar."""
        value = self._loss(outputs, batch[1])
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"loss must return a scalar tensor, got {shape}")
        return value.reshape(())

    def count(self, batch: Batch) -> Counted:
        """What a mean loss divides by on this batch, and the batch's samples."""
        if self._count is None:
            return counted(self._loss, *batch)
        given = float(self._count(batch[1]))
        return Counted(given, given, known=True)

    def _doubt(self, counts: Sequence[Counted]) -> None:
        """Warn, once, where batches are weighted by samples and the loss may divide by something else."""
        if self._doubted or self.reduction == "sum" or len(counts) < 2 or all(one.known for one in counts):
            return
        if any(one.ignored for one in counts):
            why = "some targets are negative, as an ignore index is"
        elif any(one.shapes != counts[0].shapes for one in counts):
            why = "the batches' shapes differ in more than the first dimension"
        else:
            return
        self._doubted = True
        warnings.warn(
            f"the batches are weighted by their numbers of samples, and {why}: what {self._loss!r} divides by cannot be "
            "known from outside; pass count=, a function of the targets",
            stacklevel=4,
        )

    def combine(
        self, value: Callable[[Batch], tuple[float, Tensor | None]], batches: Iterable[Batch] | None = None
    ) -> tuple[float, Tensor | None]:
        """`value(batch)`, a number and perhaps a vector, summed over batches and ranks by the loss's reduction."""
        total, first, divisors, number = 0.0, 0.0, 0.0, 0
        vector: Tensor | None = None
        counts: list[Counted] = []
        for number, batch in enumerate(self.batches if batches is None else batches, 1):
            single, part = value(batch)
            if not math.isfinite(single):
                raise ValueError(f"the loss is {single} on batch {number - 1}; curvature needs a finite one")
            counts.append(self.count(batch))
            weight = 1.0 if self.reduction == "sum" else counts[-1].divisor
            divisors += weight
            total, first = total + weight * single, single
            if part is not None:
                part = part if weight == 1 else part * weight
                vector = part if vector is None else vector.add_(part)
        self._doubt(counts)
        samples = sum(one.samples for one in counts)
        summed = sum_over_ranks(
            torch.tensor([total, divisors, samples, number], dtype=torch.float64, device=self.device)
        )
        total, divisors, self.samples, everywhere = summed.tolist()
        self.number_of_batches = number
        divisor = divisors if self.reduction == "mean" else 1.0
        if vector is not None:
            vector = sum_over_ranks(vector)
            vector = vector if divisor == 1 else vector / divisor
        return (first if everywhere == 1 else total / divisor), vector

    def at(self, point: Tensor | None) -> list[Tensor]:
        """Parameters at `point`, a vector of shape (size,); at the weights when None."""
        return self.weights if point is None else [part.clone() for part in self.split(point)]

    def loss(self, parameters: Sequence[Tensor] | None = None) -> float:
        """The loss at these parameters (default: the weights); on a single batch bit-equal to a plain evaluation."""
        used = self.weights if parameters is None else parameters

        def value(batch: Batch) -> tuple[float, None]:
            return float(self.scalar(self.outputs(used, batch), batch)), None

        with self.evaluating(), torch.no_grad():
            return self.combine(value)[0]

    def gradient(self, parameters: Sequence[Tensor] | None = None) -> tuple[float, Tensor]:
        """The loss and its gradient, a vector of shape (size,), at these parameters (default: the weights)."""
        used = self.weights if parameters is None else parameters
        leaves = [parameter.detach().requires_grad_() for parameter in used]

        def value(batch: Batch) -> tuple[float, Tensor]:
            loss = self.scalar(self.outputs(leaves, batch), batch)
            found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            return float(loss.detach()), self.flat(found)

        with self.evaluating(), torch.enable_grad():
            loss, vector = self.combine(value)
        assert vector is not None
        return loss, vector

    def setting(self, curvature: str = "loss", attention: str = "unchanged") -> Setting:
        """What was measured and how; samples are known after the first evaluation."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Setting(
            curvature,
            self.size,
            self.samples,
            self.number_of_batches,
            self.reduction,
            self.batch_norm,
            dtype,
            attention,
        )


@contextmanager
def _one_attention() -> Iterator[None]:
    """Without the encoder's fast path, which is taken only where no gradient is asked for and treats padding otherwise."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class SeesAttention(TorchFunctionMode):
    """Notes whether fused attention is called inside."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass the call on."""
        self.seen = self.seen or func is nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _computation_dtype(parameters: Sequence[Tensor], given: torch.dtype | None) -> torch.dtype:
    if given is None:
        return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    if given not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {given}")
    return given
