"""Part 2, speed and memory: what a lever adds to a step, selection, rounding, curvature, sparse layers, files."""

from __future__ import annotations

from part import Part, start

GROUPS = (
    ("steps of ResNet-18", "speed_steps:resnet18", 10.0),
    ("rounding to number formats", "speed_tensors:rounding", 4.0),
    ("selection and sweep", "speed_tensors:selection", 6.0),
    ("steps of GPT-2 small", "speed_steps:gpt2", 12.0),
    ("products with the Hessian", "speed_networks:curvature", 5.0),
    ("sparse layers", "speed_networks:sparse_layers", 5.0),
    ("saving and loading", "speed_networks:files", 5.0),
)
"""Label, function, seconds that it needs at least; in order of worth."""


def main(part: Part) -> None:
    """Every group that time allows."""
    for label, target, least in GROUPS:
        part.group(label, target, 0.0 if part.dry else least)


if __name__ == "__main__":
    start("speed", main)
