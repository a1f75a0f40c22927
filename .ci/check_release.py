"""What a release must hold: `python .ci/check_release.py FOLDER [VERSION]` looks at the wheel and the source archive there."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

LIMIT = 2_000_000
"""Bytes a wheel may take (docs/decisions/048-pages-carry-a-partial-bundle.md): 0.32 MB of it is the report's script."""
NEEDED = ("trimtab/py.typed", "trimtab/runs/recipes/digits.yaml", "trimtab/report/templates/", "LICENSE")
"""What a wheel must hold besides the modules: a name, or the folder of at least one."""


def faults(folder: Path, root: Path, version: str | None = None) -> list[str]:
    """Everything that is wrong with the release in `folder`, one sentence each."""
    wheels, archives = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        return [f"{folder} holds {len(wheels)} wheels and {len(archives)} source archives, expected one of each"]
    found = []
    if wheels[0].stat().st_size > LIMIT:
        found.append(f"{wheels[0].name} has {wheels[0].stat().st_size:,} bytes, more than {LIMIT:,}")
    names = zipfile.ZipFile(wheels[0]).namelist()
    modules = {file.relative_to(root / "src").as_posix() for file in (root / "src" / "trimtab").rglob("*.py")}
    found += [f"the wheel lacks {name}" for name in sorted(modules - set(names))]
    found += [f"the wheel lacks {part}" for part in NEEDED if not any(part in name for name in names)]
    top = {name.split("/")[0] for name in names} - {"trimtab"}
    found += [f"the wheel holds {name}" for name in sorted(top) if not name.endswith(".dist-info")]
    with tarfile.open(archives[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    found += [
        f"the source archive lacks {name}" for name in ("pyproject.toml", "README.md", "LICENSE") if name not in held
    ]
    written = {
        "pyproject.toml": r'^version = "(.*)"',
        "src/trimtab/__init__.py": r'^__version__ = "(.*)"',
        "CITATION.cff": r"^version: (.*)",
    }
    said = {file: re.findall(rule, (root / file).read_text("utf-8"), re.MULTILINE)[0] for file, rule in written.items()}
    said["the wheel"] = wheels[0].name.split("-")[1]
    if version is not None:
        said["the tag"] = version
    if len(set(said.values())) > 1:
        found.append("versions differ: " + ", ".join(f"{place} says {text}" for place, text in said.items()))
    if version is not None and not re.search(
        rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    ):
        found.append(f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'")
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]), Path(__file__).parents[1], *sys.argv[2:3])
    print("\n".join(wrong) or "wheel and source archive hold what they must")
    sys.exit(bool(wrong))
