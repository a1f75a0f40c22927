"""ONNX and torch.export files: same numbers at other batch sizes, the model untouched, nothing half-written."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.deploy import CsrLinear, export, export_onnx, export_program
from trimtab.models import create


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(27, 4))
    net(torch.randn(8, 1, 5, 5))
    with torch.no_grad():
        net[5].weight.masked_fill_(torch.rand(4, 27) < 0.8, 0.0)
    return net.train()


class Steered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_program_round_trip(tmp_path: Path) -> None:
    net = small_net()
    file = export_program(net, tmp_path / "deep" / "net.pt2", torch.zeros(1, 1, 5, 5))
    again = torch.export.load(file).module()
    assert net.training
    net.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 1, 5, 5)
        torch.testing.assert_close(again(x), net(x))


def test_program_of_several_inputs(tmp_path: Path) -> None:
    net = nn.Bilinear(3, 4, 2)
    file = export_program(net, tmp_path / "net.pt2", (torch.zeros(1, 3), torch.zeros(1, 4)))
    x, y = torch.randn(5, 3), torch.randn(5, 4)
    torch.testing.assert_close(torch.export.load(file).module()(x, y), net(x, y))


def decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return wrapper


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    @decorated
    def forward(
        self, x: Tensor, scale: Tensor | None = None, power: float = 1.0, deep: dict[str, Tensor] | None = None
    ) -> Tensor:
        out: Tensor = self.layer(x) * (1.0 if scale is None else scale) ** power
        return out if deep is None else out + deep["shift"]


def of_batch(batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)
    x, scale = torch.randn(batch, 4, generator=generator), torch.rand(batch, 1, generator=generator)
    return {"scale": scale, "power": 2.0, "x": x, "deep": {"shift": torch.rand(batch, 2, generator=generator)}}


@pytest.mark.parametrize("names", [("x",), ("x", "scale"), ("scale", "x"), ("scale", "power", "x", "deep")])
def test_program_of_a_decorated_forward_with_named_inputs(tmp_path: Path, names: tuple[str, ...]) -> None:
    net = Scaled()
    example, inputs = ({name: of_batch(batch)[name] for name in names} for batch in (1, 5))
    again = torch.export.load(export_program(net, tmp_path / "net.pt2", example)).module()
    torch.testing.assert_close(again(**inputs), net(**inputs))


def test_program_of_a_decorated_forward_and_of_many_inputs(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return torch.stack(inputs).sum(0)

    net = torch.compile(Scaled(), backend="eager")
    x, scale = of_batch(5)["x"], of_batch(5)["scale"]
    file = export_program(net, tmp_path / "net.pt2", (torch.zeros(1, 4), torch.ones(1, 1)))
    torch.testing.assert_close(torch.export.load(file).module()(x, scale), net(x, scale))
    file = export_program(Sum(), tmp_path / "sum.pt2", (torch.zeros(3, 4), torch.ones(3, 4)))
    torch.testing.assert_close(torch.export.load(file).module()(x, x + 1), 2 * x + 1)


def test_onnx_of_named_inputs_in_any_order(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = Scaled()
    example, inputs = ({name: of_batch(batch)[name] for name in ("scale", "x")} for batch in (1, 5))
    session = onnxruntime.InferenceSession(
        str(export_onnx(net, tmp_path / "net.onnx", example)), providers=["CPUExecutionProvider"]
    )
    assert {each.name for each in session.get_inputs()} == {"x", "scale"}
    (out,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(out), net(**inputs), rtol=1e-4, atol=1e-5)


def test_untraceable_or_unsuitable_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not trace Steered"):
        export_program(Steered(), tmp_path / "f", torch.ones(2, 3))
    with pytest.raises(ValueError, match="CsrLinear"):
        export_program(CsrLinear(nn.Linear(2, 2)), tmp_path / "f", torch.ones(2, 2))
    with pytest.raises(ValueError, match="batch dimension"):
        export_program(nn.Linear(2, 2), tmp_path / "f", torch.tensor(1.0))
    with pytest.raises(ValueError, match="batch size 3, the first has 2"):
        export_program(nn.Bilinear(3, 4, 2), tmp_path / "f", (torch.zeros(2, 3), torch.zeros(3, 4)))
    with pytest.raises(ValueError, match=r"argument x\[1\] of example_input must be .* got object"):
        export_program(nn.Linear(2, 2), tmp_path / "f", {"x": [torch.ones(1), object()]})
    with pytest.raises(ValueError, match="must hold a tensor with a batch dimension, got dict"):
        export_program(nn.Linear(2, 2), tmp_path / "f", {"x": 3.0})
    assert not list(tmp_path.iterdir())


def test_missing_packages_say_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ImportError, match=r"needs onnxruntime: pip install 'trimtab\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), tmp_path / "f", torch.ones(1, 2))


def test_onnx_agrees_at_other_batch_sizes(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = small_net()
    file = export_onnx(net, tmp_path / "net.onnx", torch.zeros(1, 1, 5, 5))
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]  # one file, no data beside it
    assert net.training
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    net.eval()
    for batch in (1, 5):
        x = torch.randn(batch, 1, 5, 5)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), net(x), rtol=1e-4, atol=1e-5)


def test_onnx_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    traced = export._program

    def other(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
        return traced(nn.Linear(2, 2), inputs)

    monkeypatch.setattr(export, "_program", other)
    with pytest.raises(RuntimeError, match="onnxruntime and PyTorch differ by"):
        export_onnx(nn.Linear(2, 2), tmp_path / "f.onnx", torch.ones(1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "vit_tiny", "unet_small"])
def test_networks_of_the_library(tmp_path: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = create(name, num_classes=5)
    file = export_onnx(net, tmp_path / "net.onnx", torch.zeros(1, 3, 32, 32))
    again = torch.export.load(export_program(net, tmp_path / "net.pt2", torch.zeros(1, 3, 32, 32))).module()
    net.eval()
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(again(x), net(x))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), net(x), rtol=1e-4, atol=1e-4)
