"""Gradients of single examples, without leaving a trace in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.observe.examples.formulas import check_logits, influence
from trimtab.observe.untouched import untouched

State = Mapping[str, Tensor]
CHUNK = 32
"""Examples whose gradients are made at once."""
DRAWN = 1 << 22
"""Entries of a random matrix that are drawn at once."""


def whole_state(model: nn.Module, state: State | None) -> dict[str, Tensor]:
    """Parameters and buffers of a checkpoint, or of the model as it stands, without their history.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    own = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    if state is None:
        return own
    if missing := sorted(own.keys() - state.keys() - {name for name, _ in model.named_buffers()}):
        raise ValueError(f"the checkpoint lacks {missing[0]} and {len(missing) - 1} more parameters of the model")
    return {name: state[name].detach().to(value.device) if name in state else value for name, value in own.items()}


def example_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    state: State | None = None,
    layer: nn.Linear | None = None,
) -> Tensor:
    """Gradient of each example's cross-entropy, (examples, elements), in evaluation mode.

    Args:
        model: makes logits (examples, classes); afterwards bit-equal to before.
        inputs: (examples, ...).
        targets: classes (examples,).
        state: a checkpoint to look at instead; default the model as it stands.
        layer: the last layer: then of its weight and bias alone, in closed form, `error (x) input`, at the cost of a forward
            pass. Default: all trainable parameters.

    Raises:
        ValueError: shapes do not fit, the checkpoint is of another model, or the layer is not what makes the logits.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> example_gradients(net, torch.ones(3, 2), torch.tensor([0, 1, 1])).shape
        torch.Size([3, 6])
    """
    held = whole_state(model, state)
    with untouched(model):
        if layer is not None:
            return _of_last_layer(model, layer, held, inputs, targets)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        learnt = {name: value for name, value in held.items() if name in trained}
        rest = {name: value for name, value in held.items() if name not in trained}

        def loss(learnt: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
            logits = functional_call(model, {**learnt, **rest}, (one.unsqueeze(0),))
            check_logits(logits, target.unsqueeze(0))
            return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, target.unsqueeze(0))

        found = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=CHUNK)(learnt, inputs, targets)
        return torch.cat([part.flatten(1) for part in found.values()], 1)


@torch.no_grad()
def _of_last_layer(
    model: nn.Module, layer: nn.Linear, held: dict[str, Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen.append((given[0], made))

    hook = layer.register_forward_hook(look)
    try:
        logits = functional_call(model, held, (inputs,))
    finally:
        hook.remove()
    check_logits(logits, targets)
    if len(seen) != 1 or seen[0][1].shape != logits.shape or not torch.equal(seen[0][1], logits):
        raise ValueError(f"layer must be the Linear whose outputs are the logits, got {layer}")
    error = logits.softmax(1) - F.one_hot(targets, logits.shape[1])
    parts = [(error.unsqueeze(2) * seen[0][0].unsqueeze(1)).flatten(1)]
    return torch.cat([*parts, error] if layer.bias is not None else parts, 1)


def grand(model: nn.Module, inputs: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
    """GraNd: norm of each example's gradient in all trainable parameters, (examples,); arguments as `example_gradients`.

    Reference: Paul, Ganguli, Dziugaite, arXiv 2107.07075.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> grand(net, torch.zeros(1, 2), torch.tensor([0])).shape
        torch.Size([1])
    """
    norms: Tensor = torch.linalg.vector_norm(example_gradients(model, inputs, targets, state), dim=1)
    return norms


def input_gradients(model: nn.Module, inputs: Tensor, targets: Tensor, state: State | None = None) -> Tensor:
    """Gradient of each example's right logit in its input, of the inputs' shape, in evaluation mode; for `gradient_variance`.

    Raises:
        TypeError: inputs are whole numbers, such as tokens: give the model that follows the embedding, and embeddings.

    Example:
        >>> input_gradients(nn.Linear(3, 2, bias=False), torch.ones(1, 3), torch.tensor([0])).shape
        torch.Size([1, 3])
    """
    if not inputs.is_floating_point():
        raise TypeError(
            f"gradients in the input need inputs with decimals, got {inputs.dtype}; give embeddings of tokens"
        )
    given = inputs.detach().clone().requires_grad_()
    with untouched(model), torch.enable_grad():
        logits = functional_call(model, whole_state(model, state), (given,))
        check_logits(logits, targets)
        (found,) = torch.autograd.grad(logits.gather(1, targets.unsqueeze(1)).sum(), given)
    return found


def projected(gradients: Tensor, size: int, seed: int = 0) -> Tensor:
    """Gradients (examples, elements) by a random matrix to (examples, size): products of two rows stay as they are on average.

    `G R`, entries of R independent and normal with variance 1 / size, drawn anew from the seed in pieces, so that R is never
    held. Of one seed and number of elements it is always the same R. A product `<g, h>` then has a deviation of at most
    `sqrt(2 / size) ||g|| ||h||`.

    Args:
        gradients: real, on one device.
        size: 1 or more.
        seed: of R.

    Reference: Johnson and Lindenstrauss 1984; for influence, Pruthi et al., arXiv 2002.08484.

    Example:
        >>> projected(torch.ones(2, 100), 8).shape
        torch.Size([2, 8])
    """
    whole("size", size, least=1)
    generator = torch.Generator(gradients.device).manual_seed(whole("seed", seed))
    found = gradients.new_zeros(len(gradients), size)
    for piece in torch.split(gradients, max(1, DRAWN // size), dim=1):
        drawn = torch.randn(piece.shape[1], size, generator=generator, device=piece.device, dtype=piece.dtype)
        found.addmm_(piece, drawn)
    return found.div_(size**0.5)


def tracin(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    rates: Sequence[float],
    checkpoints: Sequence[State] | None = None,
    layer: nn.Linear | None = None,
    projection: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Influence of training examples on test examples over checkpoints; see `influence`.

    Args:
        model: as in `example_gradients`.
        train, test: inputs and targets each.
        rates: learning rate at each checkpoint.
        checkpoints: states of the model. Default: the model as it stands, one rate.
        layer: the last layer alone. Default: all parameters, whose gradients for all examples are held at once.
        projection: numbers that each example's gradient is brought down to by `projected` before it is kept, some examples at a
            time: so much memory an example, at the price of noise. Default: gradients as they are.
        seed: of the projection.

    Raises:
        ValueError: not as many rates as checkpoints, or a projection below 1.

    Reference: Pruthi et al., arXiv 2002.08484.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> data = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
        >>> tracin(net, data, data, rates=[0.1]).shape
        torch.Size([4, 4])
    """
    states: Sequence[Any] = [None] if checkpoints is None else checkpoints

    def gradients(inputs: Tensor, targets: Tensor, state: State | None) -> Tensor:
        if projection is None:
            return example_gradients(model, inputs, targets, state, layer)
        parts = zip(torch.split(inputs, CHUNK), torch.split(targets, CHUNK), strict=True)
        return torch.cat([projected(example_gradients(model, *part, state, layer), projection, seed) for part in parts])

    each = [[gradients(*data, state) for state in states] for data in (train, test)]
    return influence(each[0], each[1], rates)
