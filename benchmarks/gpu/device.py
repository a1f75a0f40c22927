"""What the figures are measured on: printed as one line of JSON."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from typing import Any


def driver() -> dict[str, str]:
    """What nvidia-smi says, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return {}
    fields = ("driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (word.strip() for word in answer.splitlines()[0].split(",")), strict=False))


def describe() -> dict[str, Any]:
    """Python, torch and the first GPU; `gpu` is None where torch sees none."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "processor": platform.machine(), "threads": torch.get_num_threads(), "gpu": None,
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        x = torch.ones(1024, device="cuda")
        found |= {
            "gpu": properties.name, "gpus": torch.cuda.device_count(), "capability": f"{properties.major}.{properties.minor}",
            "memory_mib": properties.total_memory // 2**20, "cudnn": torch.backends.cudnn.version(),
            "adds_up": float(x.sum()) == 1024.0, **driver(),
        }  # fmt: skip
    return found


if __name__ == "__main__":
    print(json.dumps(describe()))
