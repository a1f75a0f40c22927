"""Combine: K losses go in, each parameter's gradient comes out joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.checks import flag
from trimtab.collectives import is_distributed, is_sharded, max_over_ranks
from trimtab.multitask.base import Combiner, gram, weighted_

Gradients = list[Tensor | None]


class Combine:
    """Gradients of several losses, joined by a combiner, where your loop has `loss.backward()`.

    `combine.backward(losses)` goes back once for each loss, joins the gradients of the shared parameters and adds the result to
    `.grad`; what belongs to one loss alone (its head) gets that loss's own gradient. Then everything goes on as usual: levers,
    clipping, `optimizer.step()`. A step holds K gradients of what is shared, the result is written over the first of them.

    Args:
        model: whose trainable parameters get gradients.
        combiner: such as `PCGrad()`.
        shared: a module or parameters that are joined. Default None: those that two losses or more reach [ours].
        reduce: average each loss's gradient over the ranks of a process group before joining (default), so that all ranks
            join the same; False: every rank joins its own.

    Raises:
        TypeError: the combiner is none, or `shared` holds no parameters.
        ValueError: `shared` holds parameters that are not the model's.

    Micro-batches: `backward(losses, more=True)` for all but the last adds each loss's gradients up, and the last call joins the
    sums: the same as one large batch. A loss without an example in a micro-batch is given as None.

    Mixed precision: `backward(losses, scaler=scaler)` scales; afterwards `scaler.unscale_` and `scaler.step` as always.
    Gradients that are not finite are added plainly, so that the scaler sees them, and no combiner learns from them.

    Processes: give the plain model, or one in DistributedDataParallel with forward and backward inside `model.no_sync()`.
    Weights in shards are refused.

    At the last shared activation: `h = combine.features(trunk(x))` in the forward pass, the heads on `h`; then only gradients
    of `h` are joined and the trunk is gone through once. Cheaper by K - 1 passes through the trunk; not for combiners that
    remember gradients, since `h` is of other examples in each step.

    Attributes:
        products: `gram` of the shared gradients of the last step; None before it.

    Example:
        >>> from trimtab.multitask import PCGrad
        >>> _ = torch.manual_seed(0)
        >>> net, inputs = torch.nn.Linear(3, 2), torch.randn(8, 3)
        >>> combine = Combine(net, PCGrad())
        >>> outputs = net(inputs)
        >>> combine.backward([outputs[:, 0].square().mean(), (outputs[:, 0] - 1).square().mean()])
        >>> net.weight.grad.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        combiner: Combiner,
        shared: nn.Module | Iterable[nn.Parameter] | None = None,
        *,
        reduce: bool = True,
    ) -> None:
        if not isinstance(combiner, Combiner):
            raise TypeError(f"combiner must be one of trimtab.multitask, such as PCGrad(), got {combiner!r}")
        self.model, self.combiner, self.reduce = model, combiner, flag("reduce", reduce)
        self._shared = None if shared is None else _members(model, shared)
        self.products: Tensor | None = None
        self._live: list[nn.Parameter] = []
        self._tasks: list[Gradients] = []
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def features(self, features: Tensor) -> Tensor:
        """The last shared activation, cut off: heads go on with what this returns.

        Raises:
            ValueError: nothing below it is trained, or the combiner remembers gradients.
        """
        if not features.requires_grad:
            raise ValueError("features must come from trained parameters, these need no gradient")
        if not self.combiner.homogeneous:
            raise ValueError(
                f"{type(self.combiner).__name__} remembers gradients from step to step, those of features are of other "
                "examples each time; join the gradients of the parameters, without combine.features"
            )
        leaf = features.detach().requires_grad_()
        self._cuts.append((features, leaf))
        return leaf

    def backward(self, losses: Sequence[Tensor | None], *, more: bool = False, scaler: Any = None) -> None:
        """Gradients of all losses, joined into `.grad`.

        Args:
            losses: one number a loss, in the same order each time; None for one without examples here.
            more: other micro-batches of this step follow.
            scaler: a `torch.amp.GradScaler` that scales the losses.

        Raises:
            ValueError: fewer than two losses, or another number than in the micro-batch before; a loss that is no single
                number, or needs no gradient; one that is None in all micro-batches of a step, or reaches nothing shared;
                nothing is shared.
        """
        try:
            self._check(losses, more)
            self._go_back(losses if scaler is None else [one if one is None else scaler.scale(one) for one in losses])
            if not more:
                self._finish(1.0 if scaler is None else float(scaler.get_scale()))
        except BaseException:
            self._tasks, self._live, self._cuts = [], [], []
            raise
        if not more:
            self._tasks, self._live, self._cuts = [], [], []

    def cosines(self) -> Tensor | None:
        """Cosines between the losses' gradients of the last step, (K, K); NaN with one of zero; None before the first."""
        if self.products is None:
            return None
        sizes = self.products.diagonal().sqrt()
        return self.products / sizes.unsqueeze(0) / sizes.unsqueeze(1)

    def state_dict(self) -> dict[str, Any]:
        """That of the combiner."""
        return self.combiner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the combiner its state back."""
        self.combiner.load_state_dict(state)

    def __repr__(self) -> str:
        return f"Combine({type(self.model).__name__}, {self.combiner!r})"

    def _check(self, losses: Any, more: bool) -> None:  # noqa: FBT001  (private)
        if isinstance(losses, Tensor) or len(losses) < 2:
            raise ValueError(f"losses must be a list of two or more, got {losses!r}")
        if self._tasks and len(losses) != len(self._tasks):
            raise ValueError(f"the micro-batches before had {len(self._tasks)} losses, this one {len(losses)}")
        for at, loss in enumerate(losses):
            if loss is None:
                continue
            if loss.numel() != 1:
                raise ValueError(f"loss {at} must be a single number, got the shape {tuple(loss.shape)}; take its mean")
            if not loss.requires_grad:
                raise ValueError(f"loss {at} depends on no trained parameter; leave it out, or give None")
        if self._cuts and more:
            raise ValueError("with features each micro-batch is joined by itself: call backward without more=True")
        if getattr(self.model, "require_backward_grad_sync", False) and is_distributed():
            raise ValueError(
                "DistributedDataParallel would reduce each loss by itself; run forward and combine.backward inside "
                "`with model.no_sync():`, the gradients are averaged here"
            )

    def _go_back(self, losses: Sequence[Tensor | None]) -> None:
        """Add the gradients of each loss to what is held of it; `.grad` of the parameters is as before."""
        live = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self._live and [id(one) for one in live] != [id(one) for one in self._live]:
            raise ValueError(
                "other parameters are trained than in the micro-batch before; freeze and thaw between steps"
            )
        for name, parameter in self.model.named_parameters():
            if is_sharded(parameter):
                raise ValueError(f"{name} lies in shards: several losses are joined over whole gradients")
        self._live = live
        inputs: list[Tensor] = [*live, *(leaf for _, leaf in self._cuts)]
        self._tasks = self._tasks or [[None] * len(inputs) for _ in losses]
        given = [at for at, loss in enumerate(losses) if loss is not None]
        before = [one.grad for one in inputs]
        try:
            for at in given:
                loss = losses[at]
                assert loss is not None
                _put(inputs, self._tasks[at])
                torch.autograd.backward(loss, inputs=inputs, retain_graph=at != given[-1])
                self._tasks[at] = [one.grad for one in inputs]
        finally:
            _put(inputs, before)

    @torch.no_grad()
    def _finish(self, scale: float) -> None:
        owners: list[Tensor] = [*self._live, *(leaf for _, leaf in self._cuts)]
        shared = self._split(owners)
        apart = set(shared)
        before = [parameter.grad for parameter in self._live]
        found: Gradients = [None] * len(owners)
        for at in range(len(owners)):
            if at not in apart:
                parts = [part for task in self._tasks if (part := task[at]) is not None]
                for part in parts[1:]:
                    parts[0].add_(part)
                found[at] = parts[0] if parts else None
        tasks = [[_filled(task[at], owners[at]) for at in shared] for task in self._tasks]
        if self.reduce and not self._cuts:
            _average([part for task in tasks for part in task])
        for at, part in zip(shared, self._joined(tasks, scale), strict=True):
            found[at] = part
        self._tasks = []
        own = found[: len(self._live)]
        if self._cuts:
            _put(self._live, own)
            torch.autograd.backward(
                [features for features, _ in self._cuts], found[len(self._live) :], inputs=self._live
            )
            own = [parameter.grad for parameter in self._live]
        if self.reduce:
            _average([part for at, part in enumerate(own) if part is not None and (self._cuts or at not in apart)])
        for parameter, part, held in zip(self._live, own, before, strict=True):
            parameter.grad = part if held is None else held if part is None else held.add_(part)

    def _split(self, owners: Sequence[Tensor]) -> list[int]:
        """Positions of what is joined; the same on every rank."""
        reached = torch.tensor([[part is not None for part in task] for task in self._tasks], dtype=torch.int32)
        if self.reduce and is_distributed():
            reached = max_over_ranks(reached.to(owners[0].device)).cpu()
            for at in range(len(self._live)):  # a rank that does not reach it adds nothing, but takes part
                if bool(reached[:, at].any()) and all(task[at] is None for task in self._tasks):
                    self._tasks[0][at] = torch.zeros_like(owners[at])
        if self._cuts:
            shared = list(range(len(self._live), len(owners)))
        elif self._shared is not None:
            shared = [at for at, owner in enumerate(owners) if id(owner) in self._shared and bool(reached[:, at].any())]
        else:
            shared = (reached.sum(0) >= 2).nonzero().flatten().tolist()
        for task, places in enumerate(reached):
            if not bool(places.any()):
                raise ValueError(
                    f"loss {task} has no gradient in this step: it was None in every micro-batch, or reaches no parameter of "
                    "the model; give it examples, or go back with the other losses alone"
                )
        for task, places in enumerate(reached):
            if not bool(places[shared].any()):
                what = "no parameter is reached by two losses" if not shared else f"loss {task} reaches nothing shared"
                raise ValueError(f"{what}: gradients can be joined only where losses share what they train")
        return shared

    def _joined(self, tasks: list[list[Tensor]], scale: float) -> list[Tensor]:
        products = gram(tasks)
        if self._cuts and self.reduce and is_distributed():  # features of different examples, side by side
            carried = products.to(tasks[0][0].device, torch.float64)
            dist.all_reduce(carried)
            products = carried.cpu()
        self.products = products / scale**2
        if not bool(products.isfinite().all()):
            return weighted_(tasks, torch.ones(len(tasks)))
        if self.combiner.homogeneous or scale == 1:
            return self.combiner.combine_(tasks, products)
        for task in tasks:
            torch._foreach_mul_(task, 1 / scale)
        found = self.combiner.combine_(tasks, self.products)
        torch._foreach_mul_(found, scale)
        return found


def _members(model: nn.Module, shared: nn.Module | Iterable[nn.Parameter]) -> frozenset[int]:
    given = list(shared.parameters()) if isinstance(shared, nn.Module) else list(shared)
    if not given or not all(isinstance(one, nn.Parameter) for one in given):
        raise TypeError(f"shared must be a module with parameters, or parameters, got {shared!r}")
    known = {id(parameter) for parameter in model.parameters()}
    if foreign := [one for one in given if id(one) not in known]:
        raise ValueError(f"shared holds {len(foreign)} parameters that are not of the model {type(model).__name__}")
    return frozenset(map(id, given))


def _put(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient


def _filled(part: Tensor | None, owner: Tensor) -> Tensor:
    """The gradient, or zeros of its owner's form.

    Raises:
        ValueError: it is sparse or complex.
    """
    if part is None:
        return torch.zeros_like(owner)
    if part.layout is not torch.strided or part.is_complex():
        raise ValueError(f"gradients must be real and dense to be joined, got {part.dtype} of layout {part.layout}")
    return part


def _average(tensors: Sequence[Tensor]) -> None:
    """Mean over all ranks, in place; nothing in a single process."""
    if not is_distributed():
        return
    waits = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for wait in waits:
        wait.wait()
    for tensor in tensors:
        tensor.div_(dist.get_world_size())
