"""Muon for the matrices of a network, SGD for the rest, as one optimizer (Jordan 2024; torch.optim.Muon)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, flag, non_negative, number, one_of, whole
from trimtab.collectives import is_sharded
from trimtab.levers import CopiedWhole
from trimtab.optimizers.foreach import loss_of
from trimtab.parameters import Entry, Rule, entries, rule_or

ADJUSTMENTS = ("original", "match_rms_adamw")
HEADS = ("*head.weight", "*fc.weight", "*classifier*.weight", "*cls_token*", "*pos_embed*")
"""Names of last layers and of what is no matrix of a product; these are left to SGD by default."""


def _torch_muon() -> Any:
    found = getattr(torch.optim, "Muon", None)
    if found is None:
        raise ValueError(
            f"torch.optim.Muon came with torch 2.9; this is torch {torch.__version__}. Use sgd or adamw here"
        )
    return found


class _Matrix:
    """A weight as a matrix of its first dimension by all others, in the memory order of `like`: no copy where that is dense."""

    def __init__(self, tensor: Tensor, like: Tensor) -> None:
        order = sorted(range(1, like.ndim), key=like.stride, reverse=True)
        self.ordered = tensor.detach().permute(0, *order)
        self.flat = self.ordered.flatten(1)

    def write_back(self) -> None:
        """Bring changes of `flat` into the tensor, where it is a copy."""
        if self.flat.data_ptr() != self.ordered.data_ptr():
            self.ordered.copy_(self.flat.view(self.ordered.shape))


class Muon(CopiedWhole):
    """Steps of orthogonalised momentum for weights of two or more dimensions, Nesterov SGD for biases, norms, tables and heads.

    For a weight W, seen as a matrix of outputs by everything else, with gradient g:

        b <- momentum b + (1 - momentum) g,    u = momentum b + (1 - momentum) g  (nesterov; else u = b)
        W <- (1 - lr weight_decay) W - lr s NS(u)

    NS takes the singular values of u to about 1 by `ns_steps` of X <- a X + (b A + c A A) X with A = X X^T, in bfloat16;
    `s = sqrt(max(1, rows / columns))` ("original") or `0.2 sqrt(max(rows, columns))` ("match_rms_adamw"). These are the steps
    of `torch.optim.Muon`, which takes matrices alone; a convolution's weight is shown to it as a view, in its own memory order.
    All else takes the step of `torch.optim.SGD` with Nesterov momentum, by `sgd_lr`, `sgd_momentum`, `sgd_weight_decay`.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate of the matrices, 0 or more. Default 0.02 (the author's post).
        momentum: of the matrices, in [0, 1). Default 0.95 (the author's post).
        weight_decay: of the matrices, decoupled. Default 0.
        nesterov: Nesterov momentum of the matrices.
        ns_steps: Newton-Schulz steps, 1 to 99. Default 5 (the author's post).
        ns_coefficients: a, b and c.
        adjust_lr: "original" or "match_rms_adamw".
        renormalize: before each step scale every matrix to the Frobenius norm `sqrt(rows)`, so that its rows have norm 1 on
            average: for weights whose scale a normalisation takes away (the author's CIFAR code). Default False.
        sgd_lr: learning rate of the rest. Default 0.1 [ours].
        sgd_momentum: of the rest, in [0, 1). Default 0.9 [ours].
        sgd_weight_decay: of the rest. Default 0 [ours].
        rule: which tensors of two or more dimensions are matrices. Default: the weights of products, without heads by name
            (`HEADS`). Tables of embeddings never are.
        model: gives the parameters their names.

    Attributes:
        left_out: what takes the step of SGD, each with its reason.

    Raises:
        ValueError: a number out of range, torch older than 2.9, sharded weights, or weights of two or more dimensions whose
            names are not known, so that the head cannot be told: pass model=... or named parameters.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> optimizer = Muon(net.parameters(), lr=0.02, model=net)
        >>> [(group["matrices"], len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(True, 2, 0.02), (False, 2, 0.1)]
    """

    default_rule = Rule(exclude=HEADS, frozen=True)
    uncopied = ("_sgd", "_muon")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        adjust_lr: Literal["original", "match_rms_adamw"] = "original",
        renormalize: bool = False,
        sgd_lr: float = 0.1,
        sgd_momentum: float = 0.9,
        sgd_weight_decay: float = 0.0,
        rule: Rule | None = None,
        model: nn.Module | None = None,
    ) -> None:
        _torch_muon()
        if len(ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be three numbers, got {ns_coefficients}")
        of_matrices = {
            "lr": non_negative("lr", lr),
            "momentum": below_one("momentum", momentum),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "nesterov": flag("nesterov", nesterov),
            "ns_steps": whole("ns_steps", ns_steps, 1, 99),
            "ns_coefficients": tuple(number("ns_coefficients", value) for value in ns_coefficients),
            "adjust_lr_fn": one_of("adjust_lr", adjust_lr, ADJUSTMENTS),
            "eps": 1e-7,
            "renormalize": flag("renormalize", renormalize),
        }
        of_the_rest = {
            "lr": non_negative("sgd_lr", sgd_lr),
            "momentum": below_one("sgd_momentum", sgd_momentum),
            "weight_decay": non_negative("sgd_weight_decay", sgd_weight_decay),
            "dampening": 0.0,
            "nesterov": sgd_momentum > 0,
        }
        self._settings: dict[bool, dict[str, Any]] = {True: of_matrices, False: of_the_rest}
        groups = _as_groups(params)
        self.left_out: list[tuple[Entry, str]] = []
        self._rule = rule_or(rule, self.default_rule)
        self._entries: dict[Tensor, Entry] = {}
        self._matrices: set[Tensor] = set()
        self._judged: set[Tensor] = set()
        self._judge([item for group in groups for item in group["params"]], model)
        common = ("lr", "momentum", "weight_decay", "nesterov")
        super().__init__(groups, {name: of_matrices[name] for name in common})

    def _judge(self, items: list[Any], model: nn.Module | None = None) -> None:
        """Tell matrices from the rest, among parameters that are new here."""
        self._entries |= {entry.parameter: entry for entry in (() if model is None else entries(model))}
        if unknown := [item for item in items if _tensor(item) not in self._entries]:
            self._entries |= {entry.parameter: entry for entry in entries(unknown)}
        new = {_tensor(item) for item in items}
        for parameter, entry in self._entries.items():
            if parameter not in new:
                continue
            reason = _reason_against(entry, self._rule)
            if reason is None:
                self._matrices.add(parameter)
            else:
                self.left_out.append((entry, reason))
        self._judged |= new

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its matrices and the rest apart; what it sets itself holds for both."""
        params = param_group["params"]
        items = [params] if isinstance(params, Tensor) else list(params)
        self._judge([item for item in items if _tensor(item) not in self._judged])
        for matrices, settings in self._settings.items():
            part = [item for item in items if (_tensor(item) in self._matrices) == matrices]
            if part:
                super().add_param_group({**settings, **param_group, "params": part, "matrices": matrices})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what the closure gave."""
        loss = loss_of(closure)
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)
            else:
                self._step_rest(group)
        return loss

    def _step_rest(self, group: Mapping[str, Any]) -> None:
        """torch's SGD on these parameters: one object for all steps, lent the group's settings and the state of this one."""
        sgd: torch.optim.SGD | None = self.__dict__.get("_sgd")  # a copy of this optimizer has none yet
        if sgd is None:
            sgd = self._sgd = torch.optim.SGD([torch.zeros(1)], lr=0.0)
        sgd.param_groups, sgd.state = [{**sgd.defaults, **group}], self.state
        sgd.step()

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        weights, kept = [], []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            memory = self.state[parameter]
            buffer = memory.get("momentum_buffer")
            if buffer is None or buffer.stride() != parameter.stride():  # loaded from a file that knows no memory order
                memory["momentum_buffer"] = (
                    torch.zeros_like(parameter) if buffer is None else _laid_out(buffer, parameter)
                )
            if group["renormalize"]:
                parameter.mul_(math.sqrt(len(parameter)) / parameter.norm().clamp(min=1e-12))
            matrix, momentum = (_Matrix(each, parameter) for each in (parameter, memory["momentum_buffer"]))
            weight = nn.Parameter(matrix.flat, requires_grad=False)
            weight.grad = _Matrix(parameter.grad, parameter).flat
            weights.append(weight)
            kept += [(matrix, weight), (momentum, momentum.flat)]
        if not weights:
            return
        names = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
        inner = self.__dict__.get("_muon")  # one object for all steps, as for SGD
        if inner is None:
            inner = self._muon = _torch_muon()([torch.zeros(1, 1)])
        inner.param_groups = [{**inner.defaults, **{name: group[name] for name in names}, "params": weights}]
        for weight, (momentum, _) in zip(weights, kept[1::2], strict=True):
            inner.state[weight] = {"momentum_buffer": momentum.flat}
        inner.step()
        inner.param_groups = []
        inner.state.clear()
        for matrix, _ in kept:
            matrix.write_back()

    def __repr__(self) -> str:
        """The settings, those of the rest with sgd_ before them."""
        own = {**self._settings[True], **{f"sgd_{name}": value for name, value in self._settings[False].items()}}
        own["adjust_lr"] = own.pop("adjust_lr_fn")
        for name in ("eps", "sgd_dampening", "sgd_nesterov"):
            own.pop(name)
        return f"Muon({', '.join(f'{name}={value!r}' for name, value in own.items())})"


def _as_groups(params: Iterable[Any]) -> list[dict[str, Any]]:
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of parameters or groups, got one tensor")
    items = list(params)
    if not items or not isinstance(items[0], dict):
        return [{"params": items}]
    return [
        {**item, "params": [item["params"]] if isinstance(item["params"], Tensor) else list(item["params"])}
        for item in items
    ]


def _tensor(item: Any) -> Tensor:
    found: Tensor = item[1] if isinstance(item, tuple) else item
    return found


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _reason_against(entry: Entry, rule: Rule) -> str | None:
    """Why a parameter is no matrix here; ValueError where that cannot be said."""
    if entry.parameter.ndim < 2:
        return f"{entry.parameter.ndim} dimension(s), fewer than 2"
    if isinstance(entry.owner, nn.Embedding | nn.EmbeddingBag):
        return "a table of embeddings"
    if (reason := rule.reason_against(entry)) is None and is_sharded(entry.parameter):
        raise ValueError(f"Muon orthogonalises whole matrices and does not take sharded weights such as {entry.name}")
    return reason
