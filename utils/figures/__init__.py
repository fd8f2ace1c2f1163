"""Figures for a paper, each as wide as a page.

    cases       a case: reference and prediction in three planes, and where they differ
    surfaces    a case: both surfaces, shaded, coloured by their distance
    summaries   a test set: the spread of its metrics; their course over training
    networks    a case: a network's distance map, or its uncertain region

They are drawn with Matplotlib's object-oriented interface on the Agg canvas, without pyplot and
without a display. The file's ending chooses the format (png, pdf, svg). The colours are those of
the Okabe-Ito set, which colour-blind readers can tell apart: blue is the reference and voxels that
a prediction lacks, orange the prediction and voxels that it has too much.
"""

from utils.figures.cases import case_figure, error_figure
from utils.figures.networks import sdm_figure, uncertainty_figure
from utils.figures.style import CLASSES, DPI, FAINT, FORMATS, INK, PREDICTION, REFERENCE, WIDTH
from utils.figures.summaries import curves_figure, summary_figure
from utils.figures.surfaces import surface_figure

__all__ = [
    "CLASSES",
    "DPI",
    "FAINT",
    "FORMATS",
    "INK",
    "PREDICTION",
    "REFERENCE",
    "WIDTH",
    "case_figure",
    "curves_figure",
    "error_figure",
    "sdm_figure",
    "summary_figure",
    "surface_figure",
    "uncertainty_figure",
]
