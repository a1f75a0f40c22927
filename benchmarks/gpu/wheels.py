"""Packages that a machine lacks, taken from a folder of wheels and put on the path without installing anything.

`python benchmarks/gpu/wheels.py DIR` fills such a folder from the package index (once, where there is a network).
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

LIMIT = 20 * 2**20
PURE = (
    "pydantic", "annotated-types", "typing-extensions", "typing-inspection", "tyro", "docstring-parser", "typeguard", "rich",
    "markdown-it-py", "mdurl", "pygments", "lightning-fabric", "lightning-utilities", "packaging", "filelock", "jinja2",
    "pytest", "pluggy", "iniconfig",
)  # fmt: skip
COMPILED = ("pydantic-core", "pyyaml", "safetensors", "markupsafe")
PYTHONS = ("3.11", "3.12", "3.13")


def distribution(wheel: Path) -> str:
    """The normalised name of a wheel's distribution."""
    return re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()


def fits(wheel: Path, version: tuple[int, int] = sys.version_info[:2], machine: str | None = None) -> bool:
    """Whether a wheel's tags fit this Python (CPython) and processor.

    >>> fits(Path("rich-15.0.0-py3-none-any.whl"))
    True
    >>> fits(Path("PyYAML-6.0.3-cp312-cp312-manylinux_2_17_x86_64.whl"), (3, 11), "x86_64")
    False
    """
    python, abi, system = wheel.stem.split("-")[-3:]
    if abi == "none" and system == "any":
        return any(tag.startswith("py3") or tag == "py2.py3" for tag in python.split("."))
    if "linux" not in system or not system.endswith(machine or platform.machine()) or sys.platform != "linux":
        return False
    own = f"cp{version[0]}{version[1]}"
    if abi == "abi3":
        least = re.fullmatch(r"cp(\d)(\d+)", python)
        return least is not None and (int(least[1]), int(least[2])) <= version
    return python == own and abi == own


def installed(name: str) -> bool:
    """Whether this Python has the distribution."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def unpack_missing(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of `folder` that this Python lacks into `target`; their names.

    What is installed is never replaced, so nothing shadows the machine's own packages.
    """
    found = []
    for wheel in sorted(folder.glob("*.whl")):
        if installed(distribution(wheel)) or not fits(wheel):
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        found.append(distribution(wheel))
    return found


def fill(folder: Path) -> int:
    """Download the wheels; their bytes together."""
    folder.mkdir(parents=True, exist_ok=True)
    constraints = Path(__file__).resolve().parents[2] / "constraints.txt"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "-c", str(constraints)]
        for version in PYTHONS:
            place = [
                "--dest",
                scratch,
                "--python-version",
                version,
                "--implementation",
                "cp",
                "--abi",
                version_tag(version),
            ]
            place += ["--abi", "abi3", "--abi", "none", "--platform", "manylinux2014_x86_64", "--platform", "any"]
            place += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"]
            subprocess.run([*command, *place, "pydantic", "pyyaml", "safetensors", "markupsafe"], check=True)
        subprocess.run([*command, "--dest", scratch, "--no-deps", *PURE], check=True)
        for wheel in Path(scratch).glob("*.whl"):
            if distribution(wheel) in (*PURE, *COMPILED):
                wheel.replace(folder / wheel.name)
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))


def version_tag(version: str) -> str:
    """`3.11` as `cp311`."""
    return "cp" + version.replace(".", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    size = fill(parser.parse_args().folder)
    print(f"{size / 2**20:.1f} MiB")
    sys.exit(size > LIMIT)
