"""No page of the repository names a file, a module or a name of Trimtab that is not there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in (ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "benchmarks").rglob("*.md"))
    for page in folder
)
PATH = re.compile(r"(?<![\w/.-])(?:src|tests|benchmarks|evidence|docs)/[\w./*-]*\w")
NAME = re.compile(r"(?<![\w/.-])trimtab(?:\.[A-Za-z_]\w*)+")
FILES = re.compile(r"\.(?:safetensors|json|md|toml|yaml|html)$")
NO_MODULE = {"trimtab.compact", "trimtab.masks", "trimtab.summary"}
"""What a file of ours calls its own format."""
HISTORY = ("CHANGELOG.md",)
"""Pages that tell of earlier versions, where what is gone has its place."""


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _is_there(page: str, path: str) -> bool:
    """Relative to the root, or to the page where it stands in a link."""
    for start in (ROOT, (ROOT / page).parent, ROOT / "docs"):
        place = start / path.rstrip(".")
        if (any(start.glob(path)) if "*" in path else place.exists()) or place.with_suffix(".py").exists():
            return True
    return False


def _resolves(name: str) -> bool:
    """A module, or an attribute of one, or of a class in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            annotated = getattr(found, "__annotations__", {})
            if part in annotated and not hasattr(found, part):
                return True
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_path_exists(page: str) -> None:
    missing = sorted({path for path in PATH.findall(_text(page)) if "NAME" not in path and not _is_there(page, path)})
    assert not missing, f"{page} names {missing}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_every_name_exists(page: str) -> None:
    named = {name for name in NAME.findall(_text(page)) if not FILES.search(name)} - NO_MODULE
    missing = sorted(name for name in named if not _resolves(name))
    assert not missing, f"{page} names {missing}"


def test_what_is_gone_is_found() -> None:
    assert PATH.findall("see `src/trimtab/experiments/runs.py`, (docs/order.md).") == [
        "src/trimtab/experiments/runs.py",
        "docs/order.md",
    ]
    assert not _is_there("README.md", "src/trimtab/experiments/runs.py")
    assert _is_there("README.md", "docs/order.md")
    assert NAME.findall("`trimtab.moments.joint_norm(x)`") == ["trimtab.moments.joint_norm"]
    assert not _resolves("trimtab.moments.joint_norm")
    assert not _resolves("trimtab.gradients.Nothing")
    assert _resolves("trimtab.gradients.ClipNorm.signals")


def test_the_picture_of_the_architecture_shows_every_room() -> None:
    drawn = set(re.findall(r'class="title"[^>]*>(\w+)<', _text("docs/images/architecture.svg")))
    rooms = {
        item.stem
        for item in (ROOT / "src" / "trimtab").iterdir()
        if not item.stem.startswith("_") and item.name != "py.typed"
    }
    assert drawn == rooms
