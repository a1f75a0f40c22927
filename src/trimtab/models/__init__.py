"""Networks by name: `create("resnet20", num_classes=10)`; `names()` lists them."""

from trimtab.models.registry import create, names

__all__ = ["create", "names"]
