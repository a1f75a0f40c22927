"""AttentionStatistics: how large attention logits are, and the queries and keys that make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.observe.meters.meter import Meter
from trimtab.parameters import Entry, unwrapped

COLUMNS = ("max_logit", "query_norm", "key_norm")
TOGETHER = 1 << 22
"""Logits that are made at a time [ours]: 16 MiB."""


def attention_statistics(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Greatest logit `scale * <q, k>` that the mask lets through, and the greatest norm of a query and of a key.

    Args:
        query, key: shape (..., tokens, features); keys may have fewer heads, which are then shared.
        mask: of `scaled_dot_product_attention`: True or 0 lets through, False or -inf does not; else added.
        causal: whether a query sees no later key.
        scale: default `1 / sqrt(features)`.

    Returns:
        Shape (3,), float32 at least.

    Example:
        >>> attention_statistics(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]), scale=1.0)
        tensor([6., 3., 5.])
    """
    query, key = (one.detach().to(torch.promote_types(one.dtype, torch.float32)) for one in (query, key))
    norms = [torch.linalg.vector_norm(one, dim=-1).amax() for one in (query, key)]
    if key.ndim > 2 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    tokens = key.shape[-2]
    rows = max(1, TOGETHER // max(1, key[..., 0].numel()))
    places = torch.arange(tokens, device=key.device)
    largest = []
    for start in range(0, query.shape[-2], rows):
        part = query[..., start : start + rows, :]
        logits = scale * part @ key.transpose(-1, -2)
        if mask is not None:
            own = mask[..., start : start + rows, :] if mask.shape[-2] > 1 else mask
            logits = logits.masked_fill(~own, -math.inf) if own.dtype == torch.bool else logits + own
        if causal:
            seen = places <= torch.arange(start, start + part.shape[-2], device=key.device).unsqueeze(1)
            logits = logits.masked_fill(~seen, -math.inf)
        largest.append(logits.amax())
    return torch.stack([torch.stack(largest).amax(), *norms])


class AttentionStatistics(Meter):
    """Of every attention layer at the steps looked at: greatest logit, greatest norm of a query and of a key.

    Logits that grow step by step are the usual way in which a transformer's training goes astray, long before its loss shows
    it. Read are the calls of `torch.nn.functional.scaled_dot_product_attention` (as attribute of that module) during the
    model's forward passes that take gradients, and the softmax inside `nn.MultiheadAttention` that returns its weights (the
    logits alone, norms are NaN). This rank's. A compiled model shows nothing.

    Signals: `attention_logit`, `attention_query_norm`, `attention_key_norm`, the greatest over the layers; `layers()` has each.

    Args:
        model: what is looked at; attach the meter to its optimizer, so that it knows the step.
        every: as of `Meter`. A step looked at makes all logits once more.

    Raises:
        ValueError: (at a step) no attention was seen in the forward pass.

    Reference: Dehghani et al., arXiv 2302.05442 (logits that grow); [ours] in this form.

    Example:
        >>> import trimtab
        >>> net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.1), AttentionStatistics(net)
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> net(torch.ones(1, 3, 8)).sum().backward()
        >>> optimizer.step()
        >>> list(meter.layers())
        ['self_attn']
    """

    judged = ("attention_logit",)

    def __init__(self, model: nn.Module, every: int | Callable[[int], bool] = 1) -> None:
        super().__init__(every)
        model = unwrapped(model)
        self._seen: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        self._inside: list[tuple[str, bool]] = []
        """Modules whose forward pass is running, each with whether it is torch's own attention."""
        self._kept: list[tuple[str, Any]] = []
        self._norms = False
        """Whether queries and keys were seen themselves."""
        self._hooks = []
        for name, module in model.named_modules():
            self._hooks += [
                module.register_forward_pre_hook(self._enter(name, outermost=module is model)),
                module.register_forward_hook(self._leave(outermost=module is model), always_call=True),
            ]

    def _enter(self, name: str, *, outermost: bool) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            if outermost and not self._kept and self.due and torch.is_grad_enabled():
                self._patch()
            if self._kept:
                self._inside.append((name, isinstance(module, nn.MultiheadAttention)))

        return enter

    def _leave(self, *, outermost: bool) -> Callable[[nn.Module, Any, Any], None]:
        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if self._kept and self._inside:
                self._inside.pop()
            if outermost and not self._inside:
                self._restore()

        return leave

    def _patch(self) -> None:
        """Put listeners in the place of torch's functions, until the model's forward pass ends."""
        attend, softmax = functional.scaled_dot_product_attention, functional.softmax
        self._kept = [("scaled_dot_product_attention", attend), ("softmax", softmax)]

        def attending(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
            self._norms = True
            given = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | named
            causal, scale = given.get("is_causal", False), given.get("scale")
            self._keep(self._of_attention(query, key, given.get("attn_mask"), causal=causal, scale=scale))
            return attend(query, key, value, *rest, **named)

        def exponential(inputs: Tensor, *rest: Any, **named: Any) -> Tensor:
            if self._inside and self._inside[-1][1]:
                self._keep(self._of_softmax(inputs))
            return softmax(inputs, *rest, **named)

        functional.scaled_dot_product_attention = attending
        functional.softmax = exponential  # type: ignore[assignment]

    _of_attention = staticmethod(attention_statistics)
    """What is kept of a call of `scaled_dot_product_attention`."""

    def _of_softmax(self, logits: Tensor) -> Tensor:
        """What is kept of a softmax over the logits of torch's own attention."""
        largest = logits.detach().float().amax()
        return torch.stack([largest, *[torch.full_like(largest, math.nan)] * 2])

    def _restore(self) -> None:
        for name, function in self._kept:
            setattr(functional, name, function)
        self._kept = []

    def _keep(self, found: Tensor) -> None:
        name = self._inside[-1][0] if self._inside else "(model)"
        known = self._seen.get(name)
        self._seen[name] = found if known is None else torch.fmax(known, found)

    def unbind(self) -> None:
        """Look no more; called by `Handle.remove`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._restore()

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The greatest over the layers."""
        self._found, self._seen = self._seen, {}
        if not self._found:
            raise ValueError(
                f"{self!r} saw no attention in the last forward pass: neither scaled_dot_product_attention of "
                "torch.nn.functional nor nn.MultiheadAttention was called with gradients"
            )
        device = next(iter(self._found.values())).device
        rows = torch.stack([row.to(device) for row in self._found.values()])
        greatest = rows.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0)
        known = {f"attention_{name}": greatest[at] for at, name in enumerate(("logit", "query_norm", "key_norm"))}
        return known if self._norms else {"attention_logit": greatest[0]}

    def layers(self) -> dict[str, dict[str, float]]:
        """max_logit, query_norm and key_norm of each layer; waits for the device."""
        return {name: dict(zip(COLUMNS, row.tolist(), strict=True)) for name, row in self._found.items()}
