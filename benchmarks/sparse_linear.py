"""From which sparsity on is a CSR Linear faster than a dense one? And what does a whole network gain?"""

from __future__ import annotations

import torch
from harness import record
from torch import nn

from trimtab.deploy import CsrLinear, break_even, measure_linear, to_sparse_linear
from trimtab.models import create

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)


def check_agreement() -> None:
    dense = nn.Linear(512, 512)
    with torch.no_grad():
        dense.weight.masked_fill_(torch.rand_like(dense.weight) < 0.9, 0.0)
        rows = torch.randn(64, 512)
        torch.testing.assert_close(CsrLinear(dense)(rows), dense(rows), rtol=1e-4, atol=1e-5)


def f_linear_ratio(sparsity: float, batch: int) -> float:
    """The obvious other way, F.linear with a CSR weight, against ours: above 1 ours is faster."""
    from harness import paired_ratio

    dense = nn.Linear(2048, 2048)
    with torch.no_grad():
        dense.weight.masked_fill_(torch.rand_like(dense.weight) < sparsity, 0.0)
        ours, matrix, rows = CsrLinear(dense), dense.weight.detach().to_sparse_csr(), torch.randn(batch, 2048)
        return paired_ratio(
            {"theirs": lambda: nn.functional.linear(rows, matrix, dense.bias), "ours": lambda: ours(rows)},
            of="theirs",
            to="ours",
            repeats=5,
            warm_up=1,
        )


def network(name: str, batch: int, sparsity: float) -> dict[str, object]:
    model = create(name, num_classes=10).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.masked_fill_(torch.rand_like(parameter) < sparsity, 0.0)
    _, report = to_sparse_linear(model, torch.randn(batch, 3, 32, 32))
    return {
        "question": f"{name} at {sparsity:.0%}, batch {batch}: dense over sparse time of the whole network",
        "ratio": 1.0 if report.model is None else report.model.ratio,
        "bar": "none: reported as it is",
        "met": True,
        "replaced": f"{report.replaced} of {len(report.rows)} layers",
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    check_agreement()
    rows: list[dict[str, object]] = []
    for size in (512, 2048):
        for batch in (1, 64):
            found = break_even(size, size, batch, SPARSITIES, budget=1.0)
            rows += [
                {
                    "question": f"Linear {size} x {size}, batch {batch}, {sparsity:.0%} zeros: dense over sparse time",
                    "ratio": ratio,
                    "bar": "none: reported as it is",
                    "met": True,
                    "faster": ratio > 1,
                    "break_even": found.sparsity,
                }
                for sparsity, ratio in found.ratios.items()
            ]
    reference = measure_linear(2048, 2048, 0.99, 64, budget=1.0)
    rows.append(
        {
            "question": "Linear 2048 x 2048, batch 64, 99% zeros gains clearly",
            "ratio": reference,
            "bar": ">= 3",
            "met": reference >= 3,
        }
    )
    for sparsity in (0.9, 0.99):
        ratio = f_linear_ratio(sparsity, 64)
        question = f"F.linear with a CSR weight over CsrLinear, 2048 x 2048, batch 64, {sparsity:.0%}"
        rows.append({"question": question, "ratio": ratio, "bar": ">= 1", "met": ratio >= 1})
    rows += [network("vit_tiny", batch, sparsity) for batch in (1, 16) for sparsity in (0.9, 0.99)]
    rows.append(network("resnet20", 16, 0.95))
    record("sparse_linear", rows)


if __name__ == "__main__":
    main()
