"""How much faster is ResNet-20 without half of its channels, on one core?"""

from __future__ import annotations

import torch
from harness import record

from trimtab.deploy import remove_channels
from trimtab.models import create


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = create("resnet20", num_classes=10).eval()
    smaller = remove_channels(model, torch.randn(2, 3, 32, 32), 0.5)
    ratio = smaller.latency(64, budget=3.0).ratio
    rows: list[dict[str, object]] = [
        {
            "question": "resnet20 without 50 % of its channels, batch 64: time before / after",
            "ratio": ratio,
            "bar": ">= 1.5",
            "met": ratio >= 1.5,
            "multiply_adds": smaller.multiply_adds[1] / smaller.multiply_adds[0],
        }
    ]
    record("channels", rows)


if __name__ == "__main__":
    main()
