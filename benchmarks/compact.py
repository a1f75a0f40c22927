"""How near is the compact file to the entropy, how much smaller than gzip and zstd, how fast on one core? ResNet-18."""

from __future__ import annotations

import importlib.util
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleaved, record
from torch import nn

from trimtab.deploy import load_compact, save_compact
from trimtab.deploy.compact_quantise import quantise
from trimtab.models import create

CASES = ((4, 0.9), (4, 0.5), (8, 0.0))


def numbers_of(model: nn.Module, names: list[str], bits: int, sparsity: float) -> bytes:
    """The quantised numbers, one byte each: what gzip and zstd get."""
    state = model.state_dict()
    parts = [quantise(name, state[name], bits, sparsity, 0, "auto").numbers for name in names]
    return np.concatenate(parts).astype(np.int8).tobytes()


def zstd_bytes(content: bytes) -> int | None:
    """zstd -19, or None where `zstandard` is not installed."""
    if importlib.util.find_spec("zstandard") is None:
        return None
    import zstandard

    return len(zstandard.ZstdCompressor(level=19).compress(content))


def halved(content: bytes) -> bytes:
    """Two numbers of four bits to a byte."""
    nibbles = np.frombuffer(content, np.uint8) & 15
    return (nibbles[: nibbles.size // 2 * 2 : 2] | nibbles[1::2] << 4).tobytes()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create("resnet18", num_classes=10)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for bits, sparsity in CASES:
            report = save_compact(model, path, bits=bits, sparsity=sparsity)
            times = interleaved(
                {
                    "save": lambda b=bits, s=sparsity: save_compact(model, path, bits=b, sparsity=s),
                    "load": lambda: load_compact(path),
                },
                repeats=3,
                warm_up=0,
            )
            content = numbers_of(model, [row.name for row in report.rows], bits, sparsity)
            forms = [content, halved(content)] if bits <= 4 else [content]
            gzip = min(len(zlib.compress(form, 9)) for form in forms)
            zstd = {
                form: size
                for form, one in zip(("a byte each", "two a byte"), forms, strict=False)
                if (size := zstd_bytes(one)) is not None
            }
            megabytes = sum(tensor.numel() * 4 for tensor in model.state_dict().values()) / 1e6
            what = f"ResNet-18, {bits} bits at {sparsity:.0%}"
            more = {
                "bytes": report.compact_bytes,
                "dense_over_compact": report.ratio,
                "file_over_gzip": report.compact_bytes / gzip,
            }
            rows.append(
                {
                    "question": f"{what}: code over entropy",
                    "ratio": report.of_entropy,
                    "bar": "<= 1.03",
                    "met": report.of_entropy <= 1.03,
                }
                | more
            )
            for form, size in zstd.items():
                ratio, bar = report.compact_bytes / size, (bits, sparsity) == (4, 0.9)
                question = f"{what}: file over zstd -19 of the numbers, {form}"
                rows.append(
                    {
                        "question": question,
                        "ratio": ratio,
                        "bar": "<= 0.85" if bar else "none",
                        "met": ratio <= 0.85 or not bar,
                    }
                )
            for name, least in (("save", 5), ("load", 20)):
                speed = megabytes / times[name].cpu_median
                rows.append(
                    {
                        "question": f"{what}: {name}, MB of float32 a CPU second",
                        "ratio": speed,
                        "bar": f">= {least}",
                        "met": speed >= least,
                    }
                )
    record("compact", rows)


if __name__ == "__main__":
    main()
