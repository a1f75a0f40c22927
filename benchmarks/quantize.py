"""What rounding to a number format costs per element: against qtorch, ml_dtypes, torch's casts and torchao's MX.

`python benchmarks/quantize.py [--big]`: tensors of 10^6 elements, or with --big of 10^8 and only what has a bar. qtorch
(which compiles C++ when it is first imported) and torchao are compared with where they are installed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from harness import interleaved, peak_extra_bytes, record

from trimtab.precision import MX, NVFP4, Hadamard, PerTensor, quantize

Calls = dict[str, Callable[[], Any]]


def optional(name: str) -> Any:
    """The module, or None after saying why not."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a missing package or a failing compiler: both leave the comparison out
        print(f"{name} left out: {type(error).__name__}: {error}")
        return None


def variants(x: torch.Tensor, qtorch: Any, torchao: Any, *, barred: bool) -> Calls:
    """Everything timed, or what has a bar; asserts that the peers agree with ours where their policies do."""
    generator = torch.Generator().manual_seed(0)
    calls: Calls = {
        "nearest": lambda: quantize(x, "e4m3"),
        "stochastic": lambda: quantize(x, "e4m3", rounding="stochastic", generator=generator),
        "toward zero": lambda: quantize(x, "e4m3", rounding="toward_zero"),
        "bf16": lambda: quantize(x, "bf16"),
        "fp16": lambda: quantize(x, "fp16"),
        "per tensor": lambda: quantize(x, "e2m1", scaling=PerTensor()),
        "MX": lambda: quantize(x, "e2m1", scaling=MX()),
        "NVFP4": lambda: quantize(x, "e2m1", scaling=NVFP4()),
        "four over six": lambda: quantize(x, "e2m1", scaling=NVFP4(four_over_six=True)),
        "MX stochastic": lambda: quantize(x, "e2m1", "stochastic", scaling=MX(unbiased=True), generator=generator),
        "Hadamard 128": lambda: Hadamard(128)(x[: x.numel() // 128 * 128]),
        "torch bf16 cast": lambda: x.bfloat16().float(),
        "torch e4m3 cast": lambda: x.to(torch.float8_e4m3fn).float(),
        "ml_dtypes e4m3": lambda: x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
    }
    assert torch.equal(calls["nearest"](), torch.from_numpy(calls["ml_dtypes e4m3"]()))
    assert torch.equal(calls["bf16"](), calls["torch bf16 cast"]())
    if qtorch is not None:
        calls["qtorch nearest"] = lambda: qtorch.float_quantize(x, 4, 3, rounding="nearest")
        calls["qtorch stochastic"] = lambda: qtorch.float_quantize(x, 4, 3, rounding="stochastic")
        # qtorch rounds ties away from zero; a normal variable in float32 seldom hits one
        assert float((calls["qtorch nearest"]() == calls["nearest"]()).float().mean()) > 0.999
    if barred:
        barred_names = ("nearest", "stochastic", "MX", "NVFP4")
        return {name: call for name, call in calls.items() if name.removeprefix("qtorch ") in barred_names}
    if torchao is not None:
        rows = x[: x.numel() // 32 * 32].view(-1, 32)
        calls["torchao MX"] = lambda: torchao.MXTensor.to_mx(rows, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)
        assert torch.equal(calls["torchao MX"](), quantize(rows, "e2m1", scaling=MX()))
    return calls


def measure(
    count: int, threads: int, repeats: int, qtorch: Any, torchao: Any, *, barred: bool = False
) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    x = torch.randn(count, generator=torch.Generator().manual_seed(1))
    timings = interleaved(variants(x, qtorch, torchao, barred=barred), repeats=repeats, warm_up=1)
    # on one thread the processor's time, which other work on the machine moves less
    medians = {name: timing.cpu_median if threads == 1 else timing.median for name, timing in timings.items()}
    nanoseconds = {name: 1e9 * seconds / count for name, seconds in medians.items()}
    where = f"{count:.0e} float32, {threads} thread{'s' * (threads > 1)}".replace("e+0", "e")
    rows: list[dict[str, Any]] = []
    for ours, theirs, bar in (
        ("nearest", "qtorch nearest", 1.5),
        ("stochastic", "qtorch stochastic", 1 / 3),
        ("nearest", "ml_dtypes e4m3", None),
        ("nearest", "torch e4m3 cast", None),
        ("bf16", "torch bf16 cast", None),
        ("MX", "torchao MX", None),
        ("stochastic", "nearest", 2.0),
        ("MX stochastic", "MX", 2.0),
        ("NVFP4", "MX", 1.5),
        ("four over six", "NVFP4", None),
        ("Hadamard 128", "nearest", None),
    ):
        if theirs not in nanoseconds or ours not in nanoseconds:
            continue
        ratio = nanoseconds[ours] / nanoseconds[theirs]
        row = {"question": f"{where}: quantize, {ours} / {theirs}", "ratio": ratio}
        row |= {"bar": "none: reported as it is"} if bar is None else {"bar": f"<= {bar:.3g}", "met": ratio <= bar}
        rows.append(row | {"ns_per_element": nanoseconds[ours], "peer_ns_per_element": nanoseconds[theirs]})
    for name in () if barred else ("toward zero", "fp16", "per tensor"):
        ratio = nanoseconds[name] / nanoseconds["nearest"]
        question = f"{where}: quantize, {name} / nearest e4m3"
        rows.append({"question": question, "ratio": ratio, "bar": "none: reported as it is"})
        rows[-1]["ns_per_element"] = nanoseconds[name]
    return rows


def memory() -> list[dict[str, Any]]:
    """Peak, the tensor included, over the tensor: every layout that takes a path of its own."""
    torch.set_num_threads(1)
    x = torch.randn(16, 64, 128, 129)
    layouts = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "a slice": x[..., :128],
    }
    kinds: dict[str, dict[str, Any]] = {
        "nearest": {},
        "stochastic": {"rounding": "stochastic"},
        "MX": {"scaling": MX()},
        "raise": {"overflow": "raise"},
    }
    rows = []
    for layout, tensor in layouts.items():
        size = tensor.numel() * 4
        for kind, settings in kinds.items():
            quantize(tensor[:1], "e4m3", **settings)
            extra = peak_extra_bytes(lambda t=tensor, s=settings: quantize(t, "e4m3", **s))
            peak = 1 + extra / size
            question = f"peak memory of quantize, {kind}, {layout} / the tensor"
            rows.append({"question": question, "ratio": peak, "bar": "<= 3", "met": peak <= 3})
    return rows


if __name__ == "__main__":
    qtorch, torchao = optional("qtorch.quant"), optional("torchao.prototype.mx_formats.mx_tensor")
    if "--big" in sys.argv:
        parts = [measure(10**8, threads, 3, qtorch, torchao, barred=True) for threads in (1, 2)]
        record("quantize_big", [row for part in parts for row in part])
    else:
        parts = [memory(), *(measure(10**6, threads, 15, qtorch, torchao) for threads in (1, 2))]
        record("quantize", [row for part in parts for row in part])
