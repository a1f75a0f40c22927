"""The code blocks of the documentation run as printed, given only what their text says the reader has."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.report.factory import make_summary

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "docs/adapters.md": "the loops of Lightning and Hugging Face: tests/adapters",
    "docs/methods/medclm-build.md": "files of a data set: tests/medclm/test_tutorial.py",
    "docs/methods/medclm-exports.md": "files of a data set: tests/medclm/test_tutorial.py",
    "docs/methods/medclm-hosts.md": "files of a data set: tests/medclm/test_hosts.py",
    "docs/methods/medclm-quality.md": "files of a data set: tests/medclm/test_quality.py",
}
"""Pages whose blocks need more than a reader's network and data, and what holds them."""
ALONE = {
    "docs/your-scripts.md", "docs/methods/medclm-audit.md",
    "README.md", "docs/report.md", "docs/methods/curricula.md", "docs/methods/curvature.md", "docs/methods/gradient-tracker.md",
    "docs/methods/landscape.md", "docs/methods/var.md",
}  # fmt: skip
"""Pages whose blocks run as they are, copied into an empty file."""
PAGES = ["README.md"]
PAGES += [
    str(page.relative_to(ROOT).as_posix())
    for folder in ("docs", "docs/methods")
    for page in sorted((ROOT / folder).glob("*.md"))
    if page.relative_to(ROOT).as_posix() not in ELSEWHERE
]


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _readers_things(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, wrapped: bool = False
) -> dict[str, Any]:
    """What every reader has: torch, trimtab, a network, an optimizer (`wrapped` where the page is past that), data, a loss."""
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if wrapped:
        optimizer = trimtab.optimizers.SAM(optimizer, model=model)
    criterion = nn.functional.cross_entropy

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        return loss

    return {
        "torch": torch, "trimtab": trimtab, "model": model, "optimizer": optimizer, "images": images, "labels": labels,
        "loader": [(images, labels)], "batches": [(images, labels)],
        "train_loader": [(images, labels)], "micro_batches": [(images, labels)], "criterion": criterion, "closure": closure,
        "tensor": torch.randn(64), "x": torch.randn(4, 64), "generator": torch.Generator().manual_seed(0), "step": 0,
        "gradient": torch.randn(9), "rounded": torch.zeros(9), "example_batch": images, "accuracy": lambda model: 0.5,
        "vector": torch.ones(sum(p.numel() for p in model.parameters())), "models": trimtab.models,
    }  # fmt: skip


@pytest.mark.parametrize(("page", "number"), [(page, n) for page in PAGES for n in range(len(_blocks(page)))])
def test_a_block_runs_as_printed(page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = _blocks(page)[number]
    monkeypatch.chdir(tmp_path)
    if page == "docs/report.md":
        make_summary(("sgd", "var")).write(tmp_path / "demo" / "summary.json")  # of `trimtab demo`
    if "my_package" in block:
        block = block.replace("my_package.networks:small", "tests.models.user_networks:open_ended")
    torch.manual_seed(0)
    shape = (8, 3, 8, 8) if "resnet20" in block else (8, 64)
    small = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    things = (
        {} if page in ALONE else _readers_things(small, torch.randn(shape), torch.arange(8), wrapped="ascend" in block)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(compile(block, f"{page}, block {number + 1}", "exec"), {"__name__": "__main__", **things})


def test_exceeds_reads_a_loss_that_autograd_follows() -> None:
    net = nn.Linear(3, 2)
    loss = net(torch.ones(1, 3)).sum().square() + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trimtab.penalties.VarianceAmplifier(1e-12).exceeds(loss, net)
    assert loss.requires_grad
