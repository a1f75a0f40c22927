"""The Hugging Face callback with the real Trainer: the same steps as `attach`, state, order, pruning, errors."""

from __future__ import annotations

import doctest
import importlib
import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.adapters.data import Seen, stateful_levers
from tests.levers.test_finish import Halves
from trimtab.observe import GradientTracker

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra `transformers`")


@pytest.fixture
def tiny() -> Any:
    """Imported here and not at the top: collecting the tests must not import transformers."""
    return importlib.import_module("tests.adapters.hugging_face_models")


def callback(*levers: Any, **settings: Any) -> Any:
    return trimtab.adapters.hugging_face.TrimtabCallback(levers, **settings)


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def attached(tiny: Any, folder: Any, *levers: Any, **settings: Any) -> nn.Module:
    """A model trained by the Trainer with an optimizer that the levers were attached to by hand."""
    model = tiny.language_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trimtab.attach(optimizer, *levers, model=model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.get("max_steps", 6))
    run = tiny.trainer(folder, model=model, optimizer=optimizer, **settings)
    run.lr_scheduler = scheduler
    run.train()
    return model


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "max_steps": 3}, {"bf16": True}])
def test_trains_as_levers_attached_by_hand(tiny, tmp_path, settings):
    seen, own = Seen(), Seen()
    run = tiny.trainer(tmp_path, callback(seen, *stateful_levers()), **settings)
    run.train()
    assert same(run.model, attached(tiny, tmp_path, own, *stateful_levers(), **settings))
    assert not same(run.model, attached(tiny, tmp_path, **settings))
    assert len(seen.gradients) == settings.get("max_steps", 6)
    assert "transformer.h.0.attn.c_attn.weight" in seen.names


def test_sees_the_gradient_of_the_whole_accumulated_batch(tiny, tmp_path):
    at_once, accumulated = Seen(), Seen()
    for seen, size, number in ((at_once, 12, 1), (accumulated, 4, 3)):
        run = tiny.trainer(
            tmp_path, callback(seen), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=number
        )
        for module in run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        run.train()
    assert len(accumulated.gradients) == 1
    torch.testing.assert_close(accumulated.gradients, at_once.gradients)


@pytest.mark.parametrize("fused", [True, False])
def test_unscaled_gradients_under_the_scaler(tiny, tmp_path, fused):
    seen, plain = Seen(), Seen()
    for recorder, scale in ((seen, 1024.0), (plain, None)):
        model = tiny.language_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        run = tiny.trainer(tmp_path, callback(recorder), model=model, optimizer=optimizer, max_steps=2)
        if scale:  # what fp16=True sets up where the device allows it
            run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run.train()
        if scale:
            assert run.accelerator.scaler.state_dict()["_growth_tracker"] == 2, "both steps went through the scaler"
    assert len(seen.gradients) == 2
    torch.testing.assert_close(seen.gradients, plain.gradients)


def test_resumed_equals_uninterrupted(tiny, tmp_path):
    checkpoints = {"save_strategy": "steps", "save_steps": 3}
    trackers = [GradientTracker(track=("gradients", "updates"), every=2) for _ in range(2)]
    straight = tiny.trainer(tmp_path / "a", callback(*stateful_levers(), tracker=trackers[0]), **checkpoints)
    straight.train()
    resumed = tiny.trainer(tmp_path / "b", callback(*stateful_levers(), tracker=trackers[1]), **checkpoints)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert same(straight.model, resumed.model)
    assert trackers[1].table().equals(trackers[0].table())
    assert trackers[1].signals_table().equals(trackers[0].signals_table())
    assert sorted(set(trackers[1].table()["step"].to_pylist())) == [0, 2, 4]
    # the checkpoint's levers matter: without their state the run goes another way
    state = tmp_path / "a" / "checkpoint-3" / "trainer_state.json"
    saved = json.loads(state.read_text())
    del saved["stateful_callbacks"]["TrimtabCallback"]
    state.write_text(json.dumps(saved))
    forgetful = tiny.trainer(tmp_path / "c", callback(*stateful_levers()), **checkpoints)
    forgetful.train(resume_from_checkpoint=str(state.parent))
    assert not same(straight.model, forgetful.model)
    assert (tmp_path / "c" / "checkpoint-6").is_dir()
    with pytest.raises(ValueError, match=r"saved levers are \['GradientTracker', 'VarianceAmplifier', 'Autoscale'\]"):
        tiny.trainer(tmp_path / "d", callback(trimtab.penalties.L1(1e-3))).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6")
        )


def test_own_clipping_comes_first_and_a_clip_among_the_levers_last(tiny, tmp_path):
    before, after = Seen(), Seen()
    chain = (before, trimtab.penalties.L1(0.5), trimtab.gradients.ClipNorm(0.02), after)
    with pytest.warns(UserWarning, match=r"max_grad_norm=0\.01 clips the gradients before the levers"):
        tiny.trainer(tmp_path, callback(*chain), max_grad_norm=0.01, max_steps=2).train()
    assert before.norms() == pytest.approx([0.01] * 2, rel=1e-3)
    assert after.norms() == pytest.approx([0.02] * 2, rel=1e-3)


def test_prunes_when_the_last_checkpoint_is_written(tiny, tmp_path):
    from safetensors.torch import load_file

    pruning = callback(*stateful_levers(), prune={"sparsity": 0.5, "scope": "layer"})
    run = tiny.trainer(tmp_path, pruning, save_strategy="steps", save_steps=6)
    run.train()
    weight = run.model.transformer.h[0].mlp.c_fc.weight
    assert int((weight == 0).sum()) == weight.numel() // 2
    assert pruning.pruned.sparsity == pytest.approx(0.5)
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert not (saved["transformer.h.0.mlp.c_fc.weight"] == 0).any()
    pruning.pruned.undo()
    assert torch.equal(weight, saved["transformer.h.0.mlp.c_fc.weight"])


def test_levers_finish_when_the_last_checkpoint_is_written(tiny, tmp_path):
    from safetensors.torch import load_file

    run = tiny.trainer(tmp_path, callback(Halves()), save_strategy="steps", save_steps=6)
    run.train()
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(run.model.get_parameter(name), saved[name] / 2)


def test_masks_are_kept(tiny, tmp_path):
    model = tiny.language_model()
    pruned = trimtab.pruning.one_shot(model, 0.5)
    run = tiny.trainer(tmp_path, callback(trimtab.pruning.KeepMasks(pruned.masks)), model=model, weight_decay=0.1)
    run.train()
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in pruned.masks.items())


def test_levers_leave_after_training_and_do_not_act_twice_in_the_next(tiny, tmp_path):
    seen = Seen()
    run = tiny.trainer(tmp_path, callback(seen), max_steps=2)
    run.train()
    run.optimizer.step()
    assert len(seen.gradients) == 2
    run.train()
    assert len(seen.gradients) == 4


def test_what_does_not_fit_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(ValueError, match="fixes the sparsity"):
        tiny.trainer(tmp_path, callback(prune={"sparsity": 0.9, "pattern": "1:2"})).train()
    with pytest.raises(ValueError, match="give one TrimtabCallback all levers; this Trainer has 2"):
        tiny.trainer(tmp_path, callback(Seen()), callback(Seen())).train()
    checkpoints = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    tiny.trainer(tmp_path, callback(Seen()), **checkpoints).train()
    with pytest.raises(ValueError, match="nothing to do"):
        tiny.trainer(tmp_path, callback(Seen()), restore_callback_states_from_checkpoint=True, max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_example_in_the_docstring():
    module = importlib.import_module("trimtab.adapters.hugging_face")
    result = doctest.testmod(module, globs={**vars(module)})
    assert result.attempted == 2
    assert result.failed == 0
