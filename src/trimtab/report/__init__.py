"""What a study found, for people: one self-contained HTML page, and a table for the terminal."""

from trimtab.report.curvature.networks import render_curvature
from trimtab.report.figures import figures, save_figures
from trimtab.report.gradients.page import render_dynamics
from trimtab.report.weights.page import render

__all__ = ["figures", "save_figures", "render", "render_curvature", "render_dynamics"]
