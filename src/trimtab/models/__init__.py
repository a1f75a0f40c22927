"""Networks by name: `create("resnet20", num_classes=10)`; `names()` lists them."""

from typing import TYPE_CHECKING

from trimtab.lazy import lazily

if TYPE_CHECKING:
    from trimtab.models.catalogue import names
    from trimtab.models.registry import create
else:
    __getattr__, __dir__ = lazily(__name__, {"create": "registry", "names": "catalogue"})

__all__ = ["create", "names"]
