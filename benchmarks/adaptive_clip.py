"""AdaptiveClip against pytorch_optimizer's AGC and torch's clip_grad_norm_: many small tensors, few big ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from gradient_transforms import SETS, cpu_turns, parameters
from harness import peak_extra_bytes, record
from pytorch_optimizer.optimizer.agc import agc
from torch import nn

from trimtab.gradients import AdaptiveClip
from trimtab.parameters import entries

CLIP = 0.01


def clip_like_peer(held: list[nn.Parameter]) -> None:
    for parameter in held:
        assert parameter.grad is not None
        parameter.grad.copy_(agc(parameter.detach(), parameter.grad, agc_clip_val=CLIP))


def variants(name: str) -> tuple[dict[str, Callable[[], Any]], list[list[nn.Parameter]]]:
    """Each with parameters of its own, which are given too; asserts that ours and the peer's do the same."""
    held = [parameters(name) for _ in range(3)]
    ours = AdaptiveClip(CLIP, exclude_last_linear=False)
    known = entries(held[0])
    before = copy.deepcopy([parameter.grad for parameter in held[0]])
    ours.before_step(known)
    clip_like_peer(held[1])
    for one, other, old in zip(held[0], held[1], before, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-9)
        assert not torch.equal(one.grad, old)
        one.grad.copy_(old)
        other.grad.copy_(old)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.before_step(known),
        "peer": lambda: clip_like_peer(held[1]),
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(held[2], 1e9, foreach=True),
    }
    return calls, held


def measure(name: str) -> list[dict[str, Any]]:
    calls, held = variants(name)
    seconds = cpu_turns(calls, held)
    memory = {label: peak_extra_bytes(call) for label, call in calls.items()}
    cheaper, against_norm = seconds["peer"] / seconds["ours"], seconds["ours"] / seconds["clip_grad_norm_"]
    return [
        {
            "question": f"{name}: pytorch_optimizer's AGC / AdaptiveClip, CPU time",
            "ratio": cheaper,
            "bar": ">= 4",
            "met": cheaper >= 4,
            "extra_mib": memory["ours"] / 2**20,
            "peer_extra_mib": memory["peer"] / 2**20,
        },
        {
            "question": f"{name}: AdaptiveClip / clip_grad_norm_ (foreach), CPU time",
            "ratio": against_norm,
            "bar": "<= 2",
            "met": against_norm <= 2,
            "ours_cpu_ms": 1e3 * seconds["ours"],
            "clip_grad_norm_cpu_ms": 1e3 * seconds["clip_grad_norm_"],
        },
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    record("adaptive_clip", [row for name in SETS for row in measure(name)])
