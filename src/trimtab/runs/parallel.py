"""Device, precision and ranks of a run, through Lightning Fabric; one process and many look the same to the loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from trimtab.collectives import is_distributed
from trimtab.levers import innermost
from trimtab.parameters.wrappers import load_own_state, own_state, unwrapped
from trimtab.runs.imports import without
from trimtab.runs.recipe import Recipe

with without(
    "torchmetrics"
):  # which Fabric imports to learn its version, and with it transformers: seconds at each start
    import lightning_fabric as fabric_library
    from lightning_fabric.plugins.precision import MixedPrecision
    from lightning_fabric.strategies import ModelParallelStrategy

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass
class Devices:
    """What the training loop needs to know of the machine."""

    fabric: Any
    sharded: bool

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        device: torch.device = self.fabric.device
        return device

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.fabric.global_rank)

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return int(self.fabric.world_size)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of fp16, else None."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the forward pass runs in the recipe's precision."""
        context: AbstractContextManager[object] = self.fabric.autocast()
        return context

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to backpropagate: multiplied by the scaler's factor in fp16."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.fabric.barrier()

    def any_rank(self, flag: bool) -> bool:  # noqa: FBT001  (a value, not a switch)
        """True on every rank when it is true on one, so that all stop at the same step."""
        if not is_distributed():
            return flag
        carrier = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(carrier)
        return bool(carrier.item())

    def setup_model(self, model: nn.Module) -> nn.Module:
        """Move, replicate or shard `model` as the strategy says."""
        if self.world_size == 1:
            return model.to(self.device)
        if self.sharded:  # FSDP2 shards contiguous parameters only
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        # Fabric's own forward wrapper is not used: the loop holds autocast and backward itself.
        prepared: nn.Module = self.fabric.setup_module(model)._forward_module  # noqa: SLF001  (Fabric has no public way to the module it calls)
        return prepared

    def gradients_reduced(self, model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Reduce gradients across ranks only at the last of several accumulated micro-batches."""
        if self.world_size == 1 or last or self.sharded:
            return nullcontext()
        context: AbstractContextManager[object] = model.no_sync()  # type: ignore[operator]
        return context

    def model_and_optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """State of both, gathered from the shards; the same on one rank and on many."""
        if not self.sharded:
            return {"model": own_state(model), "optimizer": optimizer.state_dict()}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {
            "model": get_model_state_dict(model, options=options),
            "optimizer": get_optimizer_state_dict(model, innermost(optimizer), options=options),
        }

    def load_model_and_optimizer(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Put a state of `model_and_optimizer_state` back."""
        if not self.sharded:
            load_own_state(model, state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, state["model"], options=options)
        set_optimizer_state_dict(model, innermost(optimizer), state["optimizer"], options=options)

    def whole_model(self, model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
        """The network itself, gathered into a plain module when it is sharded."""
        if not self.sharded:
            return unwrapped(model)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        whole = build()
        if self.rank == 0:
            whole.load_state_dict(state)
        return whole


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def launch(recipe: Recipe) -> Devices:
    """Set up Fabric for `recipe`: one process, or the ranks that torchrun started.

    Raises:
        ValueError: a GPU was asked for and none is there, or fsdp without torchrun.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu or auto")
    if recipe.strategy == "fsdp" and world == 1:
        raise ValueError(
            "strategy 'fsdp' needs several processes: start it with torchrun --nproc-per-node N -m trimtab ..."
        )
    if recipe.strategy == "fsdp" and recipe.precision.autocast == "fp16":
        raise ValueError(
            "strategy 'fsdp' trains in fp32 or bf16, not in fp16 (the gradient scaler does not see all shards)"
        )
    strategy: Any = "auto"
    if world > 1:
        strategy = "ddp"
        if recipe.strategy == "fsdp":
            strategy = ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    accelerator = "cpu" if recipe.device == "cpu" or not torch.cuda.is_available() else "cuda"
    # Fabric's shorthand for fp16 falls back to bf16 on a CPU; its plugin itself runs there (slowly, for tests).
    plugin = MixedPrecision("16-mixed", accelerator) if recipe.precision.autocast == "fp16" else None
    fabric = fabric_library.Fabric(
        accelerator=accelerator,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
        strategy=strategy,
        precision=None if plugin else PRECISIONS[recipe.precision.autocast],
        plugins=plugin,
    )
    if world > 1 and not dist.is_initialized():
        fabric.launch()
    if accelerator == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return Devices(fabric, sharded=recipe.strategy == "fsdp")
