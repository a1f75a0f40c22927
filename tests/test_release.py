"""What is handed to others: the wheel, the base environment, the files that a project people join must have."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
BASE = [
    Requirement(line)
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_release", ROOT / ".ci" / "check_release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _made(folder: Path, without: str = "", more: str = "", padding: int = 0) -> Path:
    """A wheel and a source archive as they should be, but for what is asked."""
    source = ROOT / "src"
    with zipfile.ZipFile(folder / "trimtab-0.1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted((source / "trimtab").rglob("*")):
            name = file.relative_to(source).as_posix()
            if file.is_file() and "__pycache__" not in name and name != without:
                wheel.write(file, name)
        wheel.writestr("trimtab-0.1.0.dist-info/licenses/LICENSE", os.urandom(padding))
        if more:
            wheel.writestr(more, "")
    with tarfile.open(folder / "trimtab-0.1.0.tar.gz", "w:gz") as archive:
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            archive.add(ROOT / name, f"trimtab-0.1.0/{name}")
    return folder


def test_a_whole_release_passes_and_is_small(release: ModuleType, tmp_path: Path) -> None:
    assert release.faults(_made(tmp_path), ROOT) == []
    assert (tmp_path / "trimtab-0.1.0-py3-none-any.whl").stat().st_size <= release.LIMIT


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"without": "trimtab/levers/handle.py"}, "the wheel lacks trimtab/levers/handle.py"),
        ({"without": "trimtab/py.typed"}, "the wheel lacks trimtab/py.typed"),
        ({"more": "tests/__init__.py"}, "the wheel holds tests"),
        ({"padding": 2_000_000}, "more than 2,000,000"),
    ],
)
def test_a_faulty_release_is_named(release: ModuleType, tmp_path: Path, asked: dict[str, str], said: str) -> None:
    found = release.faults(_made(tmp_path, **asked), ROOT)  # type: ignore[arg-type]
    assert len(found) == 1
    assert said in found[0]


def test_a_tag_must_agree_with_every_version(release: ModuleType, tmp_path: Path) -> None:
    found = "\n".join(release.faults(_made(tmp_path), ROOT, "9.9.9"))
    assert "the tag says 9.9.9" in found
    assert "no heading '## 9.9.9" in found


def _closure() -> set[str]:
    """Names of every distribution that the base brings, itself included."""
    found: set[str] = set()
    waiting = ["trimtab", *(requirement.name for requirement in BASE)]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            lines = [Requirement(line) for line in (requires(name) or ())] if name != "trimtab" else []
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [line.name for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    return found


GUARD = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {refused!r} else find(name, *rest)
from trimtab.cli import main
for words in {commands!r}:
    assert main(words) == 0, words
"""


@pytest.mark.slow
def test_the_base_needs_its_dependencies_alone(tmp_path: Path) -> None:
    """Train, track, prune, export with every package refused that only an extra brings."""
    base = _closure()
    normal = {
        name: {re.sub(r"[-_.]+", "-", one).lower() for one in made} for name, made in packages_distributions().items()
    }
    refused = {name for name, made in normal.items() if not made & base} - set(sys.stdlib_module_names) - {"setuptools"}
    assert {"onnx", "transformers", "pytest", "pydicom"} <= refused
    commands = [
        ["list"],
        ["train", "digits", "--epochs", "1", "--data.limit-train", "128", "--track", "gradients", "--out", "runs/one"],
        ["prune", "runs/one", "--sparsities", "0.5", "--replace", "--quiet"],
        ["export", "runs/one", "--to", "sparse"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", GUARD.format(refused=refused, commands=commands)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("requirement", BASE, ids=lambda requirement: requirement.name)
def test_every_base_dependency_is_used(requirement: Requirement) -> None:
    modules = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pillow": "PIL", "lightning-fabric": "lightning_fabric"}
    module = modules.get(requirement.name, requirement.name)
    rule = re.compile(rf"^\s*(import|from) {module}\b", re.MULTILINE)
    files = [
        file for file in (ROOT / "src").rglob("*.py") if "medclm" not in file.parts and "adapters" not in file.parts
    ]
    assert any(rule.search(file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.stem)
def test_forms_and_workflows_are_whole(file: Path) -> None:
    read = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.parent.name == "workflows":
        assert read["jobs"]
        for called in re.findall(r"\.ci/\w+", file.read_text(encoding="utf-8")):
            assert os.access(ROOT / called, os.X_OK), called
    elif file.stem != "config":
        assert read["name"]
        assert read["description"]
        names = [part["id"] for part in read["body"] if part["type"] != "markdown"]
        assert len(set(names)) == len(names)


def test_the_citation_is_complete() -> None:
    read = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    needed = {"cff-version", "message", "title", "abstract", "type", "license", "version", "keywords", "authors"}
    assert needed <= set(read)


def test_the_page_for_agents_is_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 30
