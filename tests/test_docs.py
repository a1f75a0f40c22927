"""The code blocks of README and documentation run as printed, each by itself, copied into an empty file."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import trimtab
from tests.report.factory import make_summary

ROOT = Path(__file__).parents[1]
GIVEN = {"docs/report.md": "reads the folder of `trimtab demo`, which takes minutes: a made-up study lies there"}
"""Pages whose blocks read what a command wrote, named on the page; all others run in an empty folder."""
LIBRARIES = ("lightning", "torch.utils.data", "transformers")
"""Their own warnings, of loops and loaders, are theirs."""
PAGES = ["README.md"]
PAGES += [
    page.relative_to(ROOT).as_posix()
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.parent.name != "tutorials"  # their blocks go on from one another: tests/test_site.py
]


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("page", "number"), [(page, n) for page in PAGES for n in range(len(_blocks(page)))])
def test_a_block_runs_as_printed(page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = _blocks(page)[number]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if page in GIVEN:
        make_summary(("sgd", "var")).write(tmp_path / "demo" / "summary.json")
    for other in _blocks(page):  # files of the reader's that the page prints
        if found := re.match(r"# (\w+\.py)\b", other):
            (tmp_path / found[1]).write_text(other, encoding="utf-8")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for library in LIBRARIES:
            warnings.filterwarnings("ignore", module=library)
        exec(compile(block, f"{page}, block {number + 1}", "exec"), {"__name__": "__main__"})


def test_exceeds_reads_a_loss_that_autograd_follows() -> None:
    net = nn.Linear(3, 2)
    loss = net(torch.ones(1, 3)).sum().square() + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trimtab.penalties.VarianceAmplifier(1e-12).exceeds(loss, net)
    assert loss.requires_grad
