"""Several losses on one network: what joins their gradients, and layers that are shared or not.

combine = multitask.Combine(model, multitask.PCGrad())
combine.backward([loss_a, loss_b])
optimizer.step()
"""

from trimtab.multitask.base import Combiner, Weighted, gram
from trimtab.multitask.cagrad import CAGrad
from trimtab.multitask.combine import Combine
from trimtab.multitask.equal_norm import EqualNorm
from trimtab.multitask.gcond import GCond
from trimtab.multitask.gradient_dropout import GradientDropout
from trimtab.multitask.pcgrad import PCGrad
from trimtab.multitask.shared_or_own import SharedOrOwn
from trimtab.multitask.similarity_momentum import SimilarityMomentum

__all__ = [
    "CAGrad",
    "Combine",
    "Combiner",
    "EqualNorm",
    "GCond",
    "GradientDropout",
    "PCGrad",
    "SharedOrOwn",
    "SimilarityMomentum",
    "Weighted",
    "gram",
]
