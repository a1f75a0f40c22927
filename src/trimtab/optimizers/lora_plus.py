"""LoRA+: the second factor of an adapter learns faster than the first."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trimtab.checks import number, positive

SECOND = ("*lora_B*", "*lora_embedding_B*", "*lora_up*")
"""How the factors that begin at zero are called: peft's and diffusers' names."""
FIRST = ("*lora_A*", "*lora_embedding_A*", "*lora_down*")


def lora_plus_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, *, second: Sequence[str] = SECOND, first: Sequence[str] = FIRST
) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: adapters' second factors B at `ratio * lr`, everything else that is trained at `lr`.

    With one rate for both, B of a wide network's `W + B A` learns too slowly.

    Args:
        model: the network with its adapters.
        lr: rate of the first factors; above 0.
        ratio: of the second's rate to the first's; 1 or more. Default 16 (authors).
        second, first: shell patterns of their names. Default peft's and diffusers' names.

    Returns:
        Groups with `params` of (name, parameter) pairs and `lr`; empty ones left out.

    Raises:
        ValueError: a number is out of range, or there are not both factors among the trained parameters.

    Reference: Hayou, Ghosh, Yu, LoRA+, arXiv 2402.12354.

    Example:
        >>> net = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "lora_B": nn.Linear(2, 8, bias=False)})
        >>> [(group["lr"], [name for name, _ in group["params"]]) for group in lora_plus_groups(net, lr=1e-4)]
        [(0.0001, ['lora_A.weight']), (0.0016, ['lora_B.weight'])]
    """
    lr, ratio = positive("lr", lr), number("ratio", ratio, least=1)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    fast = [(name, parameter) for name, parameter in trained if any(fnmatchcase(name, one) for one in second)]
    known = {name for name, _ in fast}
    slow = [(name, parameter) for name, parameter in trained if name not in known]
    for factor, patterns, names in (("second", second, known), ("first", first, {name for name, _ in slow})):
        if not any(fnmatchcase(name, one) for name in names for one in patterns):
            raise ValueError(
                f"no trained parameter of {type(model).__name__} is a {factor} factor {tuple(patterns)}; give {factor}= the "
                f"patterns of its names, such as {trained[0][0] if trained else 'lora_B'}"
            )
    return [{"params": slow, "lr": lr}, {"params": fast, "lr": ratio * lr}]
