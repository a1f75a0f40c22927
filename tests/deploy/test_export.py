"""ONNX and torch.export files: same numbers at other batch sizes, the model untouched, nothing half-written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

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


def test_untraceable_or_unsuitable_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not trace Steered"):
        export_program(Steered(), tmp_path / "f", torch.ones(2, 3))
    with pytest.raises(ValueError, match="CsrLinear"):
        export_program(CsrLinear(nn.Linear(2, 2)), tmp_path / "f", torch.ones(2, 2))
    with pytest.raises(ValueError, match="batch dimension"):
        export_program(nn.Linear(2, 2), tmp_path / "f", torch.tensor(1.0))
    with pytest.raises(ValueError, match="batch size 3, the first has 2"):
        export_program(nn.Bilinear(3, 4, 2), tmp_path / "f", (torch.zeros(2, 3), torch.zeros(3, 4)))
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

    def other(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
        return traced(nn.Linear(2, 2), inputs)

    monkeypatch.setattr(export, "_program", other)
    with pytest.raises(RuntimeError, match="onnxruntime and PyTorch differ by"):
        export_onnx(nn.Linear(2, 2), tmp_path / "f.onnx", torch.ones(1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "vit_tiny", "unet_small"])
def test_networks_of_the_library(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxruntime")
    net = create(name, num_classes=5)
    export_onnx(net, tmp_path / "net.onnx", torch.zeros(1, 3, 32, 32))
    export_program(net, tmp_path / "net.pt2", torch.zeros(1, 3, 32, 32))
