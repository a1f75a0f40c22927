"""The Lightning callback with the real Trainer: the same steps as a loop of one's own, state, order, pruning, errors."""

from __future__ import annotations

import doctest
import importlib
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.adapters.data import BATCHES, Seen, network, own_loop, stateful_levers
from tests.levers.test_finish import Halves
from trimtab.observe import GradientTracker, read_table

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="needs the extra `lightning`")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


@pytest.fixture
def modules() -> Any:
    """Imported here and not at the top: collecting the tests must not import Lightning."""
    return importlib.import_module("tests.adapters.lightning_modules")


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    from lightning.pytorch import Trainer

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    settings = {"max_epochs": 1, "enable_checkpointing": False, **settings}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **settings)


def callback(*levers: Any, **settings: Any) -> Any:
    return trimtab.adapters.lightning.TrimtabCallback(levers, **settings)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["Automatic", "Manual"])
def test_trains_as_a_loop_of_ones_own(modules, tmp_path, kind):
    module, seen = getattr(modules, kind)(), Seen()
    trainer(tmp_path, callback(seen, *stateful_levers())).fit(module)
    assert_same(module.net, own_loop(*stateful_levers()))
    assert any(not torch.equal(a, b) for a, b in zip(module.net.parameters(), own_loop().parameters(), strict=True))
    assert len(seen.gradients) == 6
    assert seen.names == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


def test_accumulated_gradients_once_per_step(modules, tmp_path):
    module, seen, own = modules.Automatic(), Seen(), Seen()
    trainer(tmp_path, callback(seen, *stateful_levers()), accumulate_grad_batches=2).fit(module)
    assert_same(module.net, own_loop(own, *stateful_levers(), accumulate=2, steps=3))
    assert len(seen.gradients) == len(own.gradients) == 3
    torch.testing.assert_close(seen.gradients, own.gradients)


@pytest.mark.parametrize("fused", [False, True])
def test_unscaled_gradients_in_mixed_precision(modules, tmp_path, fused):
    from lightning.pytorch.plugins import MixedPrecision

    module, seen, own = modules.Automatic(fused=fused), Seen(), Seen()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer(tmp_path, callback(seen), plugins=MixedPrecision("16-mixed", "cpu", scaler), max_steps=1).fit(module)
    own_loop(own, steps=1)
    torch.testing.assert_close(seen.gradients[0], own.gradients[0], rtol=2e-2, atol=2e-3)


def test_resumed_equals_uninterrupted(modules, tmp_path):
    straight, first, second = (modules.Automatic() for _ in range(3))
    trackers = [GradientTracker(track=("gradients", "updates"), every=4) for _ in range(3)]
    trainer(tmp_path, callback(*stateful_levers(), tracker=trackers[0]), max_epochs=2).fit(straight)
    half = trainer(tmp_path, callback(*stateful_levers(), tracker=trackers[1]))
    half.fit(first)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = callback(*stateful_levers(), tracker=trackers[2])
    trainer(tmp_path, resumed, max_epochs=2).fit(second, ckpt_path=tmp_path / "half.ckpt")
    assert_same(straight, second)
    assert trackers[2].table().equals(trackers[0].table())
    assert trackers[2].signals_table().equals(trackers[0].signals_table())
    assert sorted(set(trackers[2].table()["step"].to_pylist())) == [0, 4, 8]
    # the checkpoint's levers matter: without their state the run goes another way
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=True)
    state = checkpoint["callbacks"].pop("TrimtabCallback")
    assert [lever["type"] for lever in state["levers"]] == ["GradientTracker", "VarianceAmplifier", "Autoscale"]
    torch.save(checkpoint, tmp_path / "forgetful.ckpt")
    forgetful = modules.Automatic()
    trainer(tmp_path, callback(*stateful_levers()), max_epochs=2).fit(forgetful, ckpt_path=tmp_path / "forgetful.ckpt")
    assert not torch.equal(straight.net[0].weight, forgetful.net[0].weight)
    other = trainer(tmp_path, callback(trimtab.penalties.L1(1e-3)), max_epochs=2)
    with pytest.raises(ValueError, match=r"saved levers are \['GradientTracker', 'VarianceAmplifier', 'Autoscale'\]"):
        other.fit(modules.Automatic(), ckpt_path=tmp_path / "half.ckpt")


def test_tracker_sees_what_the_levers_get_and_what_they_signal(modules, tmp_path):
    seen, tracker = Seen(), GradientTracker(folder=tmp_path / "run")
    trainer(tmp_path, callback(seen, *stateful_levers(), tracker=tracker)).fit(modules.Automatic())
    rows = read_table(tmp_path / "run" / "gradients.parquet").to_pylist()
    norms = [row["norm"] for row in rows if row["layer"] == "net.0.weight"]
    assert norms == pytest.approx([float(gradients[0].norm()) for gradients in seen.gradients])
    signals = read_table(tmp_path / "run" / "signals.parquet").to_pylist()
    assert [row["step"] for row in signals if row["name"] == "alpha"] == list(range(6))


def test_own_clipping_comes_first_and_a_clip_among_the_levers_last(modules, tmp_path):
    before, after = Seen(), Seen()
    chain = (before, trimtab.penalties.L1(0.5), trimtab.gradients.ClipNorm(0.02), after)
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0\.01 clips the gradients before the levers"):
        trainer(tmp_path, callback(*chain), gradient_clip_val=0.01).fit(modules.Automatic())
    assert before.norms() == pytest.approx([0.01] * 6, rel=1e-3)
    assert after.norms() == pytest.approx([0.02] * 6, rel=1e-3)


def test_prunes_when_the_last_checkpoint_is_written(modules, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    pruning = callback(*stateful_levers(), prune=0.5)
    checkpoints = ModelCheckpoint(tmp_path, save_last=True)
    module = modules.Automatic()
    trainer(tmp_path, pruning, checkpoints, enable_checkpointing=True).fit(module)
    zeros = sum(int((module.net[layer].weight == 0).sum()) for layer in (0, 2))
    assert zeros == pruning.pruned.count == 23
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any((weights[f"net.{layer}.weight"] == 0).any() for layer in (0, 2))
    pruning.pruned.undo()
    assert all(torch.equal(module.state_dict()[name], weight) for name, weight in weights.items())


def test_levers_finish_when_the_last_checkpoint_is_written_and_not_after_an_exception(modules, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    module = modules.Automatic()
    trainer(tmp_path, callback(Halves()), ModelCheckpoint(tmp_path, save_last=True), enable_checkpointing=True).fit(
        module
    )
    straight = own_loop()
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in straight.named_parameters():
        assert torch.equal(weights[f"net.{name}"], weight)
        assert torch.equal(module.net.get_parameter(name), weight / 2)

    class Failing(modules.Automatic):
        def training_step(self, batch: Any, index: int) -> Any:
            raise RuntimeError("a broken batch")

    failing = Failing()
    with pytest.raises(RuntimeError, match="a broken batch"):
        trainer(tmp_path, callback(Halves())).fit(failing)
    assert_same(failing.net, network())


def test_statistics_that_no_longer_fit_are_said(modules, tmp_path):
    class Normed(modules.Automatic):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, nn.BatchNorm1d(5))

    with pytest.warns(UserWarning, match=r"BatchNorm statistics no longer fit: call trimtab\.pruning\.recalibrate"):
        trainer(tmp_path, callback(Halves())).fit(Normed())


def test_settings_of_pruning_are_refused_before_training(modules, tmp_path):
    with pytest.raises(TypeError, match="sparsty"):
        callback(prune={"sparsty": 0.9})
    module = modules.Automatic()
    with pytest.raises(ValueError, match="fixes the sparsity"):
        trainer(tmp_path, callback(prune={"sparsity": 0.9, "pattern": "1:2", "indivisible": "leave_out"})).fit(module)
    assert_same(module.net, network())
    with pytest.raises(ValueError, match="nothing to do"):
        trainer(tmp_path, callback()).fit(module)


def test_several_optimizers_need_a_choice(modules, tmp_path):
    with pytest.raises(ValueError, match=r"TwoOptimizers configures 2; TrimtabCallback\(optimizer=...\)"):
        trainer(tmp_path, callback(Seen())).fit(modules.TwoOptimizers())
    with pytest.raises(ValueError, match="several below that, got 2"):
        trainer(tmp_path, callback(Seen(), optimizer=2)).fit(modules.TwoOptimizers())
    seen = Seen()
    trainer(tmp_path, callback(seen, optimizer=1)).fit(modules.TwoOptimizers())
    assert seen.names == ["net.2.weight", "net.2.bias"]
    assert len(seen.gradients) == 6


def test_levers_leave_after_training_and_after_an_exception(modules, tmp_path):
    class Failing(modules.Automatic):
        def training_step(self, batch: Any, index: int) -> Any:
            if index == 2:
                raise RuntimeError("a broken batch")
            return super().training_step(batch, index)

    seen = Seen()
    run = trainer(tmp_path, callback(seen))
    with pytest.raises(RuntimeError, match="a broken batch"):
        run.fit(Failing())
    run.optimizers[0].step()
    assert len(seen.gradients) == 2
    run = trainer(tmp_path, callback(seen))
    run.fit(modules.Automatic())
    run.optimizers[0].step()
    assert len(seen.gradients) == 2 + 6


def test_sharpness_aware_steps(modules, tmp_path):
    from trimtab.optimizers import SAM

    class Sharp(modules.Automatic):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SAM(super().configure_optimizers(), rho=0.1, model=self)

    module, seen = Sharp(), Seen()
    trainer(tmp_path, callback(seen, trimtab.penalties.L1(1e-2)), max_steps=1).fit(module)
    net = network()
    inputs, labels = BATCHES[0]
    sharp = SAM(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=net)
    trimtab.attach(sharp, trimtab.penalties.L1(1e-2))

    def closure() -> torch.Tensor:
        sharp.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        return loss

    sharp.step(closure)
    assert_same(module.net, net)
    assert len(seen.gradients) == 1


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("levers", [True, False])
def test_sharpness_aware_steps_over_accumulated_batches(modules, tmp_path, levers, accumulate):
    """Six batches: windows of two, or of four and a rest of two (divided by four, as Lightning does)."""
    from trimtab.optimizers import SAM

    def network_with_dropout() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.3), *network(), nn.BatchNorm1d(3))

    class Sharp(modules.Automatic):
        def __init__(self) -> None:
            super().__init__()
            self.net = network_with_dropout()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return SAM(super().configure_optimizers(), rho=0.1, model=self)

    module, net = Sharp(), network_with_dropout()
    chain = stateful_levers() if levers else []
    torch.manual_seed(7)
    run = trainer(tmp_path, callback(*chain), accumulate_grad_batches=accumulate)
    run.fit(module)
    sharp = SAM(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=net)
    trimtab.attach(sharp, *(stateful_levers() if levers else []), model=net)
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_()  # the loader's draw
    for first in range(0, 6, accumulate):

        def closure(first: int = first) -> torch.Tensor:
            sharp.zero_grad()
            for inputs, labels in BATCHES[first : first + accumulate]:
                loss = nn.functional.cross_entropy(net(inputs), labels) / accumulate
                loss.backward()
            return loss

        sharp.step(closure)
    assert_same(module.net, net)
    assert all(torch.equal(a, b) for a, b in zip(module.net.buffers(), net.buffers(), strict=True))
    assert not run.optimizers[0]._optimizer_step_pre_hooks
    with pytest.raises(
        RuntimeError, match=r"the closure adds to gradients.*callbacks=\[trimtab.*TrimtabCallback\(\)\]"
    ):
        trainer(tmp_path, accumulate_grad_batches=accumulate).fit(Sharp())


def test_a_gan_with_one_callback_or_two(modules, tmp_path):
    tracker = GradientTracker()
    run = trainer(tmp_path, callback(trimtab.gradients.ClipNorm(1.0), tracker=tracker, optimizer=(0, 1)))
    run.fit(modules.TwoOptimizers())
    assert tracker.step == 6
    assert set(tracker.table()["layer"].to_pylist()) == {"net.0.weight", "net.2.weight", "(global)"}
    penalties = [trimtab.penalties.L1(0.1), trimtab.penalties.L1(0.2)]
    callbacks = [callback(penalty, optimizer=place) for place, penalty in enumerate(penalties)]
    two = trainer(tmp_path, *callbacks)
    two.fit(modules.TwoOptimizers())
    two.save_checkpoint(tmp_path / "two.ckpt")
    penalties[0].strength = 7.0
    trainer(tmp_path, *callbacks, max_epochs=2).fit(modules.TwoOptimizers(), ckpt_path=tmp_path / "two.ckpt")
    assert [penalty.strength for penalty in penalties] == [0.1, 0.2]


def test_masks_are_kept(modules, tmp_path):
    module = modules.Automatic()
    pruned = trimtab.pruning.one_shot(module, 0.5)
    trainer(tmp_path, callback(trimtab.pruning.KeepMasks(pruned.masks), trimtab.penalties.L1(1e-3))).fit(module)
    assert all(bool((module.get_parameter(name)[~mask] == 0).all()) for name, mask in pruned.masks.items())


@pytest.mark.parametrize("given", ["masks", "zeros"])
def test_masks_are_an_argument_of_the_callback(modules, tmp_path, given):
    module = modules.Automatic()
    pruned = trimtab.pruning.one_shot(module, 0.5)
    masks = pruned.masks if given == "masks" else "zeros"
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer(tmp_path, callback(trimtab.penalties.L1(1e-3), masks=masks)).fit(module)
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    for name, mask in pruned.masks.items():
        assert torch.equal(module.get_parameter(name) != 0, mask), name


def test_masks_that_do_not_fit_are_refused_before_training(modules, tmp_path):
    with pytest.raises(ValueError, match="masks must be masks by name, or 'zeros', got 'own'"):
        callback(masks="own")
    module = modules.Automatic()
    with pytest.raises(ValueError, match="belong to no parameter of the optimizer: 'nothing'"):
        trainer(tmp_path, callback(masks={"nothing": torch.ones(2, dtype=torch.bool)})).fit(module)
    with pytest.raises(ValueError, match="holds a zero"):
        trainer(tmp_path, callback(masks="zeros")).fit(module)
    assert_same(module.net, network())


def test_example_in_the_docstring():
    module = importlib.import_module("trimtab.adapters.lightning")
    result = doctest.testmod(module, globs={**vars(module)})
    assert result.attempted == 3
    assert result.failed == 0
