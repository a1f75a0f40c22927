"""Scores from gradients of the loss: SNIP, Taylor, GraSP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trimtab.checks import one_of, positive
from trimtab.parameters import Entry
from trimtab.parameters.wrappers import unwrapped
from trimtab.pruning.calibration import Calibration, undisturbed
from trimtab.pruning.data_scores import DataScore
from trimtab.pruning.layer_inputs import as_matrix, from_matrix
from trimtab.tensors.passes import working_dtype

Loss = Callable[[Any, Any], Tensor]
"""`loss(outputs, targets)`, a scalar; targets are the last item of a tuple or list, or the mapping itself."""


class GradientScore(DataScore):
    """What the three share: batches with targets, and gradients of the loss by the chosen weights.

    Args:
        loader: batches `(inputs, targets)` or mappings. Training data.
        loss: `loss(outputs, targets)`, a scalar; of a mapping `loss(outputs, batch)`.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    The network runs in the mode that it is in (at initialisation that of training, as published); buffers, random state and
    gradients are left as they were.

    Raises:
        ValueError: the loader is empty; when pruning: a weight that the loss does not depend on (named), a gradient with
            NaN (named).
        TypeError: the loss is not a scalar tensor.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        loss: Loss,
        *,
        batches: int | None = None,
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss must be callable, loss(outputs, targets), got {loss!r}")
        self.loss = loss
        self.calibration = Calibration(loader, batches, forward)

    def reason_against(self, entry: Entry) -> str | None:
        """Why no gradient of the entry is taken, or None."""
        return (
            None if entry.computed is None else "computed from other parameters: gradients are taken of plain weights"
        )

    def _value(self, model: nn.Module, batch: Any, temperature: float = 1.0) -> Tensor:
        outputs = self.calibration.run(model, batch)
        if temperature != 1:
            if not isinstance(outputs, Tensor):
                raise TypeError(
                    f"outputs are divided by the temperature {temperature:g} and must be a tensor, got "
                    f"{type(outputs).__name__}; give forward=... that returns one, or temperature=1"
                )
            outputs = outputs / temperature
        targets = batch[-1] if isinstance(batch, tuple | list) else batch
        device = next(model.parameters()).device
        value = self.loss(outputs, targets.to(device) if isinstance(targets, Tensor) else targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise TypeError(f"the loss must be a scalar tensor, got {value!r}")
        return value

    def _gradients(
        self, model: nn.Module, chosen: Sequence[Entry], value: Tensor, *, graph: bool = False
    ) -> tuple[Tensor, ...]:
        weights = [entry.parameter for entry in chosen]
        if value.grad_fn is None:
            raise ValueError(
                f"the loss depends on no weight of {type(model).__name__}: is it computed without gradients?"
            )
        found = torch.autograd.grad(value, weights, create_graph=graph, allow_unused=True)
        lost = [entry.name for entry, gradient in zip(chosen, found, strict=True) if gradient is None]
        if lost:
            raise ValueError(
                f"the calibration data never reach {', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}: the loss does "
                "not depend on it; leave it out with rule=Rule(exclude=...)"
            )
        for entry, gradient in zip(chosen, found, strict=True):
            if not bool(gradient.detach().isfinite().all()):
                raise ValueError(f"the gradient of {entry.name} holds NaN or infinite values")
        return found

    @contextmanager
    def _running(self, model: nn.Module, chosen: Sequence[Entry]) -> Iterator[list[Any]]:
        """The batches, while the model may be run and is left as it was."""
        with undisturbed(model, training=None), torch.enable_grad():
            for entry in chosen:
                entry.parameter.requires_grad_()
            yield self.calibration.batches

    def _mean_gradients(self, model: nn.Module, chosen: Sequence[Entry], temperature: float = 1.0) -> list[Tensor]:
        """Of the loss over all batches, each of the same weight, in float32 at least."""
        total = [_wide(torch.zeros_like(entry.parameter)) for entry in chosen]
        with self._running(model, chosen) as batches:
            for batch in batches:
                found = self._gradients(model, chosen, self._value(model, batch, temperature))
                for sum_, gradient in zip(total, found, strict=True):
                    sum_ += gradient
        return [sum_.div_(len(batches)) for sum_ in total]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(working_dtype(tensor))


class Snip(GradientScore):
    """Connection sensitivity `|w g|`, g the gradient of the loss, its mean over the batches taken before the magnitude.

    Of a network at initialisation, as published, or of any other. Compared over the whole network unless told otherwise.

    Args:
        loader: batches `(inputs, targets)` or mappings; one batch in the paper. Training data.
        loss: `loss(outputs, targets)`, a scalar; of a mapping `loss(outputs, batch)`.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Raises:
        ValueError: an empty loader; when pruning: a weight that the loss does not depend on, a gradient with NaN (named).
        TypeError: the loss is not a scalar tensor.

    Reference:
        Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity, arXiv 1810.02340.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(2, 1)
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0]]))]
        >>> _ = one_shot(net, 0.5, score=Snip(data, nn.functional.mse_loss))
        >>> net.weight[0, 1].item()  # its input is 0
        0.0
    """

    def of(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> list[Tensor]:
        """`|w g|`."""
        found = self._mean_gradients(unwrapped(model), chosen)
        return [_wide(entry.parameter).mul(gradient).abs_() for entry, gradient in zip(chosen, found, strict=True)]


class Taylor(GradientScore):
    """First-order change of the loss when a weight goes, `(w g)^2`, summed over the batches.

    Args:
        loader: batches `(inputs, targets)` or mappings. Training data.
        loss: `loss(outputs, targets)`, a scalar; of a mapping `loss(outputs, batch)`.
        unit: "weight" (default), or "channel": `(sum w g)^2` over each output channel, one number for all its weights, as the
            paper scores filters.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Raises:
        ValueError: an empty loader, an unknown unit; when pruning: a weight that the loss does not depend on, a gradient with
            NaN (named).
        TypeError: the loss is not a scalar tensor.

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, arXiv 1906.10771.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(2, 1)
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0]]))]
        >>> _ = one_shot(net, 0.5, score=Taylor(data, nn.functional.mse_loss))
        >>> net.weight[0, 1].item()
        0.0
    """

    def __init__(
        self,
        loader: Iterable[Any],
        loss: Loss,
        *,
        unit: str = "weight",
        batches: int | None = None,
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        super().__init__(loader, loss, batches=batches, forward=forward)
        self.unit = one_of("unit", unit, ("weight", "channel"))

    def settings(self) -> dict[str, object]:
        """What changes the scores."""
        return {"unit": self.unit}

    def of(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> list[Tensor]:
        """The sum over batches of `(w g)^2`."""
        model = unwrapped(model)
        total = [_wide(torch.zeros_like(entry.parameter)) for entry in chosen]
        with self._running(model, chosen) as batches:
            for batch in batches:
                found = self._gradients(model, chosen, self._value(model, batch))
                for entry, sum_, gradient in zip(chosen, total, found, strict=True):
                    product = _wide(entry.parameter) * gradient
                    if self.unit == "channel":
                        matrix = as_matrix(entry, product)
                        product = from_matrix(entry, matrix.sum(1, keepdim=True).expand_as(matrix))
                    sum_ += product.square()
        return total


class GraSP(GradientScore):
    """Gradient signal preservation, `w (*) H g`: kept are the weights whose removal would cost the most gradient flow.

    g is the gradient of the loss, H its Hessian, outputs divided by a temperature. The paper's score is `-w (*) H g` and its
    largest go; ours has the other sign, so that the smallest go as everywhere. It takes either sign.

    Args:
        loader: batches `(inputs, targets)` or mappings; the published code takes 25 (10 in its examples) samples of each class
            in two halves: give two class-balanced batches. Training data.
        loss: `loss(outputs, targets)`, a scalar; of a mapping `loss(outputs, batch)`.
        temperature: outputs are divided by it before the loss; default 200 [code].
        batches: use only the first so many; default all.
        forward: runs the model on a batch of another form, `forward(model, batch)`.

    Raises:
        ValueError: an empty loader, a temperature of 0 or less; when pruning: a weight that the loss does not depend on, a
            gradient with NaN (named), a part of the network without second derivatives (`nn.EmbeddingBag`).
        TypeError: the loss is not a scalar tensor, or outputs that are no tensor with a temperature other than 1.

    Reference:
        Wang, Zhang, Grosse: Picking Winning Tickets Before Training by Preserving Gradient Flow, arXiv 2002.07376.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(2, 1)
        >>> data = [(torch.randn(4, 2), torch.randn(4, 1))]
        >>> one_shot(net, 0.5, score=GraSP(data, nn.functional.mse_loss, temperature=1)).count
        1
    """

    def __init__(
        self,
        loader: Iterable[Any],
        loss: Loss,
        *,
        temperature: float = 200.0,
        batches: int | None = None,
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        super().__init__(loader, loss, batches=batches, forward=forward)
        self.temperature = positive("temperature", temperature)

    def settings(self) -> dict[str, object]:
        """What changes the scores."""
        return {"temperature": self.temperature}

    def of(self, model: nn.Module, chosen: Sequence[Entry], *, early: bool = False) -> list[Tensor]:
        """`w (*) H g`, means over the batches."""
        model = unwrapped(model)
        fixed = self._mean_gradients(model, chosen, self.temperature)
        total = [torch.zeros_like(gradient) for gradient in fixed]
        with self._running(model, chosen) as batches, sdpa_kernel(SDPBackend.MATH):  # fused attention has no second one
            for batch in batches:
                found = self._gradients(model, chosen, self._value(model, batch, self.temperature), graph=True)
                flow = torch.stack([(a * b).sum() for a, b in zip(fixed, found, strict=True)]).sum()
                if flow.grad_fn is None:  # the loss is linear in the weights: H is 0
                    continue
                second = _second_gradients(flow, [entry.parameter for entry in chosen])
                for sum_, product in zip(total, second, strict=True):
                    if product is not None:
                        sum_ += product
        return [_wide(entry.parameter) * sum_.div_(len(batches)) for entry, sum_ in zip(chosen, total, strict=True)]


def _second_gradients(flow: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of what was computed from gradients; ValueError where a part of the network has no second one."""
    try:
        return torch.autograd.grad(flow, weights, allow_unused=True)
    except RuntimeError as error:
        if "not implemented" not in str(error):  # out of memory, a hook of the user's
            raise
        raise ValueError(
            f"GraSP needs second derivatives, and a part of the network has none in PyTorch ({error}): Snip and Taylor do "
            "with first ones"
        ) from error
