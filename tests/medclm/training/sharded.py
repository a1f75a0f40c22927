"""`trimtab` with an accelerate that shards on CPUs, as torch can and accelerate does not: what --fsdp does, without GPUs."""

import sys

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

made = Accelerator.__init__


def sharding(self, *args, fsdp_plugin=None, **kwargs):
    made(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    self.state.fsdp_plugin = fsdp_plugin
    if self.state._mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(self.state._mixed_precision)


if __name__ == "__main__":
    Accelerator.__init__ = sharding
    torch.accelerator.is_available = lambda: True
    from trimtab.cli import main

    sys.exit(main())
