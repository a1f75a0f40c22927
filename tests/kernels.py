"""CUDA kernels compiled for this processor: one block of one thread runs through everything."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SHIMS = """
#include <cmath>
#include <cstring>
using std::isinf;
#define __global__
#define __shared__
unsigned own[1 << 15];
static const struct { int x; } blockIdx{0}, threadIdx{0}, blockDim{1}, gridDim{1};
static int __float_as_int(float x) { int i; std::memcpy(&i, &x, 4); return i; }
static float __int_as_float(int i) { float x; std::memcpy(&x, &i, 4); return x; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static void __syncthreads() {}
static void atomicAdd(unsigned* at, unsigned by) { *at += by; }
"""


def compiled(source: str, name: str, folder: Path) -> Callable[..., None]:
    """The function `name`, called as `trimtab.tensors.cuda_kernels.Kernel` is; skips where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler here")
    (folder / "kernel.cpp").write_text(SHIMS + source)
    command = [compiler, "-O1", "-ffp-contract=off", "-shared", "-fPIC", str(folder / "kernel.cpp"), "-o"]
    subprocess.run([*command, str(folder / "kernel.so")], check=True, timeout=120)
    function = getattr(ctypes.CDLL(str(folder / "kernel.so")), name)
    function.restype = None

    def run(threads: int, arguments: Any, *, shared: int = 0) -> None:
        passed: list[Any] = []
        for one in arguments:
            if isinstance(one, torch.Tensor):
                passed.append(ctypes.c_void_p(one.data_ptr()))
            else:
                passed.append(ctypes.c_int(one) if isinstance(one, int) else ctypes.c_double(one))
        function(*passed)

    return run
