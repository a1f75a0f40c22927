"""Zeros that stay in a weight while it is trained: plain weights, and those computed from parts that can hold them."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.parameters import Entry, Rule, Source, select

TRAINED_WEIGHTS = Rule(exclude=("*cls_token", "*pos_embed*"))
"""What is pruned along training by default: what `one_shot` prunes, without frozen weights."""


def reason_against_zeros(entry: Entry) -> str | None:
    """Why no zeros can be kept in the weight while it is trained; None where they can.

    A plain weight holds them itself, one under weight_norm or torch's pruning holds them in its parts; under spectral_norm and
    orthogonal they would need a mask in the module, which changes its state's keys.
    """
    if entry.parameter.numel() == 0:
        return "empty"
    if entry.computed is None or entry.computed.gone(torch.ones(entry.parameter.shape, dtype=torch.bool)):
        return None
    return f"under {entry.computed.how}, which cannot hold zeros while it is trained; prune it afterwards with one_shot"


def weights_for_zeros(parameters: Source, rule: Rule) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """The weights that a rule picks and that can hold zeros, and all others with their reasons.

    Example:
        >>> from trimtab.parameters import entries
        >>> chosen, left_out = weights_for_zeros(entries(torch.nn.Linear(2, 2)), TRAINED_WEIGHTS)
        >>> [entry.name for entry in chosen], [reason for _, reason in left_out]
        (['weight'], ['1 dimension(s), fewer than 2'])
    """
    selection = select(parameters, rule, computed=True)
    chosen, left_out = [], list(selection.left_out)
    for entry in selection.chosen:
        reason = reason_against_zeros(entry)
        if reason is None:
            chosen.append(entry)
        else:
            left_out.append((entry, reason))
    return chosen, left_out


def weight_now(entry: Entry) -> Tensor:
    """The weight as it is now, without its history; of a computed one anew."""
    return (entry.parameter if entry.computed is None else entry.computed.weight()).detach()


@torch.no_grad()
def set_zeros_(entry: Entry, gone: Tensor) -> None:
    """Set the weight to zero where `gone`; the others keep their values."""
    if entry.computed is None:
        entry.parameter.masked_fill_(gone, 0)
    else:
        entry.computed.prune_(~gone)


@torch.no_grad()
def keep_zeros_(entry: Entry, gone: Tensor) -> None:
    """Set the weight to zero again where `gone`, after its optimizer has moved it."""
    if entry.computed is None:
        entry.parameter.masked_fill_(gone, 0)
    else:
        entry.computed.keep_(~gone)


def parts_gone(entry: Entry, gone: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The parameters that the zeros lie in, each with a bool tensor that is True there."""
    return [(entry.parameter, gone)] if entry.computed is None else entry.computed.gone(~gone)
