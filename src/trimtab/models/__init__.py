"""Networks by name: `create("resnet20", num_classes=10)`; `names()` lists them."""

from typing import TYPE_CHECKING

from trimtab.lazy import lazily

if TYPE_CHECKING:
    from trimtab.models.attention_residual import AttentionResidual
    from trimtab.models.catalogue import names
    from trimtab.models.initial import positive_share, prior_bias_
    from trimtab.models.registry import create
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "AttentionResidual": "attention_residual", "create": "registry", "names": "catalogue", "positive_share": "initial",
            "prior_bias_": "initial",
        },
    )  # fmt: skip

__all__ = ["AttentionResidual", "create", "names", "positive_share", "prior_bias_"]
