"""Products with the Hessian, sparse Linear layers, sparse files: on the GPU against what they replace."""

from __future__ import annotations

from typing import Any

import torch
from part import Part
from timing import in_turns, median_seconds, peak_mib
from torch import nn

from trimtab import models
from trimtab.deploy import CsrLinear, load_sparse, save_sparse
from trimtab.observe.curvature import GaussNewton, Hessian, Objective
from trimtab.pruning import one_shot


def _settings(part: Part) -> dict[str, Any]:
    return {"repeats": 1, "target": 0.0} if part.dry else {"repeats": 5, "target": 0.05}


def curvature(part: Part) -> None:
    """A product with the Hessian or Gauss-Newton matrix against two gradients of the same loss, float32."""
    device = part.device
    name, batch = ("resnet8", 8) if part.dry else ("resnet18", 256)
    torch.manual_seed(0)
    model = models.create(name, num_classes=10).to(device)
    pair = (torch.randn(batch, 3, 32, 32, device=device), torch.randint(0, 10, (batch,), device=device))
    objective = Objective(model, nn.functional.cross_entropy, pair)
    vector = torch.randn(objective.size, device=device)
    for label, kind in {"Hessian": Hessian, "Gauss-Newton": GaussNewton}.items():

        def one(_: Part, label: str = label, kind: Any = kind) -> None:
            matrix = kind(objective)
            turns = in_turns(
                lambda: (objective.gradient(), objective.gradient()), lambda: matrix @ vector, device, **_settings(part)
            )
            part.row(
                f"{name}, batch {batch}: product with the {label} matrix / two gradients", turns.ratio, None,
                product_ms=1e3 * turns.changed, peak_mib=peak_mib(lambda: matrix @ vector, device),
            )  # fmt: skip
            matrix.release()

        part.group(f"{label} product", one)


def sparse_layers(part: Part) -> None:
    """Dense time over sparse time of a Linear layer, 2:4 in half formats, CSR in float32: above 1 the sparse one pays."""
    device = part.device
    size, rows = (64, 32) if part.dry else (4096, 4096)

    def semi(_: Part) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            dense = nn.Linear(size, size, bias=False, device=device, dtype=dtype)
            one_shot(dense, pattern="2:4")
            packed = torch.sparse.to_sparse_semi_structured(dense.weight.detach())
            x = torch.randn(rows, size, device=device, dtype=dtype)
            with torch.no_grad():
                error = float((nn.functional.linear(x, packed) - dense(x)).float().norm() / dense(x).float().norm())
                turns = in_turns(lambda: nn.functional.linear(x, packed), lambda: dense(x), device, **_settings(part))  # noqa: B023
            part.row(
                f"Linear {size} x {size}, {rows} rows, 2:4, {str(dtype)[6:]}: dense over sparse time", turns.ratio, None,
                relative_error=error,
            )  # fmt: skip

    def csr(_: Part) -> None:
        for sparsity in (0.9, 0.99):
            for count in (1, 64):
                dense = nn.Linear(size, size, device=device).eval()
                one_shot(dense, sparsity)
                sparse = CsrLinear(dense)
                x = torch.randn(count, size, device=device)
                with torch.no_grad():
                    error = float((sparse(x) - dense(x)).norm() / dense(x).norm())
                    turns = in_turns(lambda: sparse(x), lambda: dense(x), device, **_settings(part))  # noqa: B023
                part.row(
                    f"Linear {size} x {size}, {count} rows, CSR at {sparsity:.0%}: dense over sparse time", turns.ratio,
                    None, relative_error=error,
                )  # fmt: skip

    part.group("CSR Linear layers", csr)
    if part.dry:
        part.row("2:4 Linear layers", left_out="torch has no 2:4 kernels for a CPU")
    else:
        part.group("2:4 Linear layers", semi)


def files(part: Part) -> None:
    """Saving and loading a pruned network from the device, against `torch.save` and `torch.load`."""
    device, name = part.device, "resnet8" if part.dry else "resnet18"
    torch.manual_seed(0)
    model = models.create(name, num_classes=10).to(device)
    one_shot(model, 0.9)
    settings: dict[str, Any] = {"repeats": 1 if part.dry else 3, "target": 0.0}
    ours, theirs = part.folder / "pruned.safetensors", part.folder / "pruned.pt"
    calls = {
        "save": (lambda: save_sparse(model, ours), lambda: torch.save(model.state_dict(), theirs)),
        "load": (
            lambda: load_sparse(ours, model),
            lambda: model.load_state_dict(torch.load(theirs, map_location=device, weights_only=True)),
        ),
    }
    for name_of, (own, other) in calls.items():
        mine, peer = median_seconds(own, device, **settings), median_seconds(other, device, **settings)
        part.row(f"{name} at 90 %: {name_of} sparse / torch.{name_of}", mine / peer, None, ms=1e3 * mine)
    part.row(f"{name} at 90 %: bytes of the sparse file / of torch.save's", ours.stat().st_size / theirs.stat().st_size)
