"""Watch each layer's gradient and clip it: `python examples/watch_gradients.py`, a few seconds, no files."""

from __future__ import annotations

import torch
from torch import nn

import trimtab


def main(steps: int = 60) -> list[tuple[int, float]]:
    """Train a small network on noise with a trend; (step, standard deviation of the whole gradient) of the tracked steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tracker = trimtab.observe.GradientTracker(("gradients",), every=10)
    trimtab.attach(optimizer, tracker, trimtab.gradients.ClipNorm(1.0), model=model)
    for _ in range(steps):
        inputs = torch.randn(64, 16)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), inputs[:, :1]).backward()
        optimizer.step()
    return [(row["step"], row["std"]) for row in tracker.table().to_pylist() if row["layer"] == "(global)"]


if __name__ == "__main__":
    for step, spread in main():
        print(f"step {step:3d}: {spread:.2e}")
