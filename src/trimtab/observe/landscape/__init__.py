"""Sections of the loss along one or two directions through the weights, without touching the network."""

from trimtab.observe.landscape.directions import Directions, eigenvector_directions, random_directions
from trimtab.observe.landscape.section import Section, section

__all__ = ["Directions", "Section", "eigenvector_directions", "random_directions", "section"]
