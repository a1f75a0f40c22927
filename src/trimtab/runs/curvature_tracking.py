"""Curvature while a run trains: the largest eigenvalue and SAM's sharpness after every few epochs, without touching it."""

from __future__ import annotations

from typing import Any

from torch import nn

from trimtab import datasets
from trimtab.observe.curvature import Hessian, sharpness, top_eigenvalues
from trimtab.runs.curvature_objective import objective_of, training_images
from trimtab.runs.parallel import Devices
from trimtab.runs.recipe import Recipe

TOLERANCE = 0.01
MAX_PRODUCTS = 30
RHO = 0.05


class CurvatureTracking:
    """Measures the network on one fixed batch of training images, at the end of epochs.

    Largest eigenvalue of the Hessian by Lanczos (residual at most 1 %, at most 30 products) and one-step SAM sharpness
    (rho 0.05) of the task's loss, in evaluation mode, BatchNorm by its running statistics, without augmentation and without
    penalty. The batch has 1024 images by default, as in the figure of arXiv 2511.14282; it is fixed, so that a curve shows
    the network and not the batch [ours]. Under DistributedDataParallel each rank takes its share and sums are reduced.

    Args:
        recipe: `track_curvature_every` epochs, `track_curvature_batch` images (all, where there are fewer).
        data: the loaded data set.
        devices: where, and among which ranks.

    Raises:
        ValueError: parameters are sharded.
    """

    def __init__(self, recipe: Recipe, data: datasets.DataSet, devices: Devices) -> None:
        if devices.sharded:
            raise ValueError("track: curvature needs whole parameters on each rank; with strategy fsdp leave it out")
        self.images = min(recipe.track_curvature_batch, len(data.train))
        if self.images < devices.world_size:
            raise ValueError(f"track_curvature_batch {self.images} is less than one image for each rank")
        self._recipe = recipe
        ((images, targets),) = training_images(recipe, data, self.images, self.images, 0, devices.device)
        own = slice(devices.rank, None, devices.world_size)
        self._batches = [(images[own], targets[own])]

    def due(self, epoch: int) -> bool:
        """Whether the network is measured after this many epochs."""
        return epoch % self._recipe.track_curvature_every == 0 or epoch == self._recipe.epochs

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """What goes into the epoch's row of `metrics.jsonl`."""
        objective = objective_of(self._recipe, model, self._batches)
        top = top_eigenvalues(Hessian(objective), tolerance=TOLERANCE, max_products=MAX_PRODUCTS)
        ball = sharpness(objective, RHO)
        return {
            "top_eigenvalue": top.values[0],
            "top_eigenvalue_residual": top.residuals[0],
            "sharpness": ball.value,
            "curvature_batch": self.images,
        }
