"""What a study found, for people: one self-contained HTML page, and a table for the terminal."""

from trimtab.report.curvature import render_curvature
from trimtab.report.page import render, render_dynamics

__all__ = ["render", "render_curvature", "render_dynamics"]
