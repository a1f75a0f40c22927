"""What a run was made with: versions and hardware, for the run folder and the report."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """Versions of Python, Trimtab and what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("trimtab", "torch", "numpy", "lightning-fabric", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, str | int | float | None]:
    """Processor, cores, threads, accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
