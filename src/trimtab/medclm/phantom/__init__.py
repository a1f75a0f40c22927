"""A seeded chest phantom with organ masks, findings, and their truth: data to try everything on with nothing downloaded."""

from trimtab.medclm.phantom.files import PhantomImage, draw, write_phantom
from trimtab.medclm.phantom.lesions import FINDINGS, PhantomLesion

__all__ = ["FINDINGS", "PhantomImage", "PhantomLesion", "draw", "write_phantom"]
