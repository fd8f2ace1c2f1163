"""Figures for a paper, each as wide as a page.

``cases``      a case: reference and prediction in three planes, and where they differ
``surfaces``   a case: both surfaces, shaded, coloured by their distance
``summaries``  a test set: the spread of its metrics; their course over training
``networks``   what a method's figure shows of its networks: a distance map, an uncertain region

Drawn with Matplotlib's object-oriented interface on the Agg canvas, so nothing global is changed
and no display needed. The file's ending chooses the format (png, pdf, svg). Colours are of the
Okabe-Ito set, which colour-blind readers tell
apart: blue is the reference and what a prediction lacks, orange the prediction and what it has too
    much.
"""

from utils.figures.cases import case_figure, error_figure
from utils.figures.networks import sdm_figure, uncertainty_figure
from utils.figures.style import CLASSES, DPI, FAINT, FORMATS, INK, PREDICTION, REFERENCE, WIDTH
from utils.figures.summaries import curves_figure, summary_figure
from utils.figures.surfaces import surface_figure
from utils.metrics import NAMES, SHOWN

__all__ = [
    "CLASSES",
    "DPI",
    "FAINT",
    "FORMATS",
    "INK",
    "NAMES",
    "PREDICTION",
    "REFERENCE",
    "SHOWN",
    "WIDTH",
    "case_figure",
    "curves_figure",
    "error_figure",
    "sdm_figure",
    "summary_figure",
    "surface_figure",
    "uncertainty_figure",
]
