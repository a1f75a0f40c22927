"""How much the wrappers keep: state of SAM, ASAM and CrAM+ against that of their base optimizer.

In bytes of `state_dict()`, and in bytes of tensors alive between two steps. Run: `python benchmarks/optimizer_state.py`
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from harness import record
from torch import Tensor, nn

from trimtab.models import create
from trimtab.optimizers import ASAM, SAM, CrAM

BASES = {
    "SGD with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}
WRAPPERS = {
    "SAM": lambda base, model: SAM(base, model=model),
    "ASAM": lambda base, model: ASAM(base, model=model),
    "CrAM+": lambda base, model: CrAM(base, 0.2, (0.5, 0.95), model=model),
}


def nbytes(state: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(nbytes, state.values()))
    return sum(map(nbytes, state)) if isinstance(state, list | tuple) else 0


def living_bytes() -> int:
    """Bytes of every tensor that Python holds."""
    gc.collect()
    found = {
        item.untyped_storage().data_ptr(): item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)
    }
    return sum(item.untyped_storage().nbytes() for item in found.values())


def after_steps(make_base: Callable[..., Any], wrap: Callable[..., Any] | None) -> tuple[int, int, int]:
    """Bytes of the state, bytes alive after two steps, and bytes of the weights."""
    torch.manual_seed(0)
    before = living_bytes()
    model = create("resnet20", num_classes=10)
    base = make_base(model)
    optimizer = base if wrap is None else wrap(base, model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.zeros(2, dtype=torch.int64))
        loss.backward()
        return loss.detach()

    for _ in range(2):
        if wrap is None:
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)
    optimizer.zero_grad()
    return nbytes(optimizer.state_dict()), living_bytes() - before, nbytes(list(model.parameters()))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for base, make_base in BASES.items():
        state, alive, _ = after_steps(make_base, None)
        for name, wrap in WRAPPERS.items():
            own_state, own_alive, weights = after_steps(make_base, wrap)
            # The generator's state (CrAM) is 5,056 bytes whatever the network: counted apart.
            generator = 5056 if name == "CrAM+" else 0
            rows.append(
                {
                    "question": f"state of {name} around {base} / state of {base}, resnet20",
                    "ratio": (own_state - generator) / state,
                    "alive_between_steps_ratio": own_alive / alive,
                    "extra_bytes": own_state - state,
                    "weights_bytes": weights,
                    "bar": "1.0",
                    "met": own_state - generator == state,
                }
            )
    record("optimizer_state", rows)


if __name__ == "__main__":
    main()
