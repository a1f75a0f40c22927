"""Hand the pruned network to other runtimes: dense ONNX, checked in onnxruntime, and a `torch.export` program."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

from trimtab.deploy.csr_linear import CsrLinear
from trimtab.files import replace_atomically
from trimtab.observe.untouched import untouched
from trimtab.parameters.arguments import Arguments, arguments
from trimtab.parameters.wrappers import unwrapped

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


CONSTANTS = (bool, int, float, str, type(None))


def _inputs(example_input: Any) -> Arguments:
    """The arguments, at least two examples in each tensor: a batch of one would be taken for a constant."""
    positional, keywords = arguments(example_input)
    sizes: list[int] = []

    def at_least_two(label: str, item: Any) -> Any:
        if isinstance(item, CONSTANTS):
            return item
        if isinstance(item, Mapping):
            return {key: at_least_two(f"{label}[{key!r}]", value) for key, value in item.items()}
        if isinstance(item, tuple | list):
            return type(item)(at_least_two(f"{label}[{place}]", value) for place, value in enumerate(item))
        if not isinstance(item, Tensor) or item.ndim == 0 or len(item) == 0:
            raise ValueError(
                f"{label} of example_input must be a tensor with a batch dimension, got {_described(item)}"
            )
        sizes.append(len(item))
        if len(item) != sizes[0]:
            raise ValueError(f"{label} has batch size {len(item)}, the first has {sizes[0]}")
        return (
            torch.cat([item, item]) if len(item) == 1 else item.detach()
        )  # an object of its own: it has a shape of its own

    positional = tuple(at_least_two(f"argument {place}", item) for place, item in enumerate(positional))
    keywords = {name: at_least_two(f"argument {name}", item) for name, item in keywords.items()}
    if not sizes:
        raise ValueError(f"example_input must hold a tensor with a batch dimension, got {_described(example_input)}")
    return positional, keywords


def _described(item: Any) -> str:
    return f"shape {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__


def _program(model: nn.Module, inputs: Arguments) -> ExportedProgram:
    if any(isinstance(module, CsrLinear) for module in model.modules()):
        raise ValueError("the model holds CsrLinear layers, which have no exported form; export the dense model")
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]  # by tensor, whatever the signature of a decorated forward says
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            shapes[leaf] = {0: Dim.DYNAMIC}
    try:
        return torch.export.export(model, *inputs, dynamic_shapes=shapes)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"torch.export could not trace {type(model).__name__} with a free batch dimension: {reason}"
        ) from error


def export_program(model: nn.Module, path: str | os.PathLike[str], example_input: Any) -> Path:
    """Save the network in evaluation mode as a `torch.export` program with a free batch dimension.

    Args:
        model: any module that `torch.export` can trace; left as it is. The network inside wrappers is taken.
        path: file to write, usually `.pt2`.
        example_input: a tensor, a tuple of arguments or a mapping of named ones, tensors batch first. Numbers, strings and None
            become constants of the file.

    Returns:
        The path. `torch.export.load(path).module()` gives the network back.

    Raises:
        ValueError: the model cannot be traced, or the input has no batch dimension.
        OSError: the file could not be written.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_program(net, f"{folder}/net.pt2", torch.zeros(1, 3))
        ...     again = torch.export.load(file).module()
        >>> torch.equal(again(torch.ones(5, 3)), net(torch.ones(5, 3)))
        True
    """
    path = Path(path)
    model = unwrapped(model)
    with untouched(model), torch.no_grad():
        program = _program(model, _inputs(example_input))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            torch.export.save(program, handle)

    replace_atomically(path, write)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices about packages it does not need and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _check_agreement(model: nn.Module, file: Path, inputs: Arguments, tolerance: float) -> None:
    """Run the file in onnxruntime at the given batch size and at one more."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    longer = tree_map(lambda leaf: torch.cat([leaf, leaf[:1]]) if isinstance(leaf, Tensor) else leaf, inputs)
    for positional, keywords in (inputs, longer):
        wanted = [leaf for leaf in tree_leaves(model(*positional, **keywords)) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((positional, keywords)) if isinstance(leaf, Tensor)]
        fed = dict(zip(names, (tensor.detach().cpu().numpy() for tensor in given), strict=True))
        for expected, got in zip(wanted, session.run(None, fed), strict=True):
            found = torch.from_numpy(got)
            gap = float((found.double() - expected.detach().cpu().double()).abs().max()) if found.numel() else 0.0
            allowed = tolerance * max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
            if found.shape != expected.shape or not gap <= allowed:
                raise RuntimeError(
                    f"onnxruntime and PyTorch differ by {gap:.3g} (allowed {allowed:.3g}) at batch {len(given[0])}"
                )


def export_onnx(model: nn.Module, path: str | os.PathLike[str], example_input: Any, *, tolerance: float = 1e-3) -> Path:
    """Write the network as one dense ONNX file with a free batch dimension, after onnxruntime agreed with PyTorch.

    Zeros stay zeros but take their full space: ONNX runtimes compute with dense weights. The check runs at the example's
    batch size and at one more; nothing is written when it fails.

    Args:
        model: any module that `torch.export` can trace; left as it is. The network inside wrappers is taken.
        path: file to write.
        example_input: a tensor, a tuple of arguments or a mapping of named ones, tensors batch first. Numbers, strings and None
            become constants of the file.
        tolerance: largest difference allowed, relative to the largest output where that is above 1. Default 1e-3 [ours].

    Returns:
        The path.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is missing.
        ValueError: the model cannot be traced, or the input has no batch dimension.
        RuntimeError: onnxruntime and PyTorch disagree.
        OSError: the file could not be written.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {', '.join(missing)}: pip install 'trimtab[onnx]'")
    path = Path(path)
    model, inputs = unwrapped(model), _inputs(example_input)
    with untouched(model), torch.no_grad():
        with _quiet():
            program = torch.onnx.export(_program(model, inputs), dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")

        def write(temporary: Path) -> None:
            program.save(str(temporary), external_data=False)
            _check_agreement(model, temporary, inputs, tolerance)

        replace_atomically(path, write)
    return path
