"""How small is the sparse file? Against the entropy bound, gzip, and torch.save of a torch-pruned model; ResNet-18."""

from __future__ import annotations

import copy
import gzip
import io
import tempfile
from pathlib import Path

import torch
from harness import interleaved, record
from torch import nn
from torch.nn.utils import prune

from trimtab.deploy import load_sparse, save_sparse
from trimtab.models import create

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
BAR = 0.9


def torch_pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """The model as torch.nn.utils.prune leaves it: a mask and the full weights for each layer."""
    model = copy.deepcopy(model)
    layers = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    return model


def with_the_same_zeros(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The plain model with the zeros of the torch-pruned one."""
    model = copy.deepcopy(model)
    for plain, masked in zip(model.modules(), pruned.modules(), strict=True):
        if isinstance(plain, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                plain.weight.masked_fill_(masked.weight_mask == 0, 0.0)
    return model


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = create("resnet18", num_classes=10)
    rows = []
    for sparsity in SPARSITIES:
        peer = torch_pruned(base, sparsity)
        model = with_the_same_zeros(base, peer)
        buffer = io.BytesIO()
        torch.save(peer.state_dict(), buffer)
        zipped = len(gzip.compress(buffer.getvalue(), compresslevel=6))
        for dtype in (torch.float32, torch.bfloat16):
            stored_model = copy.deepcopy(model).to(dtype)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "net.safetensors"
                stored = save_sparse(stored_model, path, with_gzip=True)
                again = load_sparse(path)
                state = stored_model.state_dict()
                assert all(
                    torch.equal(again[name].reshape(-1).view(torch.uint8), state[name].reshape(-1).view(torch.uint8))
                    for name in state
                ), "the round trip is not bit-equal"
                assert stored.gzip_bytes is not None
                row = {
                    "question": f"ResNet-18 {str(dtype).removeprefix('torch.')} at {sparsity:.0%}: file against bound",
                    "ratio": stored.of_bound,
                    "bar": f">= {BAR}",
                    "met": stored.of_bound >= BAR,
                    "bytes": stored.sparse_bytes,
                    "dense_over_sparse": stored.ratio,
                    "dense_over_gzip": stored.dense_bytes / stored.gzip_bytes,
                }
                if dtype == torch.float32:
                    times = interleaved(
                        {
                            "save": lambda model=stored_model, path=path: save_sparse(model, path),
                            "load": lambda path=path: load_sparse(path),
                            "torch": lambda peer=peer: torch.save(peer.state_dict(), io.BytesIO()),
                        },
                        repeats=5,
                        warm_up=1,
                    )
                    row |= {
                        "dense_over_torch_prune": stored.dense_bytes / len(buffer.getvalue()),
                        "dense_over_torch_prune_gzip": stored.dense_bytes / zipped,
                        "save_cpu_over_torch_save": times["save"].cpu_median / times["torch"].cpu_median,
                        "save_cpu_seconds": times["save"].cpu_median,
                        "load_cpu_seconds": times["load"].cpu_median,
                    }
                rows.append(row)
    record("store", rows)


if __name__ == "__main__":
    main()
