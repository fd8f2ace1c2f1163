"""Figures for a paper, each as wide as a page.

    cases         a case: reference and prediction in three planes, and where they differ
    surfaces      a case: both surfaces, shaded, coloured by their distance
    summaries     a test set: the spread of its metrics; their course over training
    networks      a case: a network's distance map, entropy or gradient
    masks         a case: masks that networks predicted, over steps or runs
    side_by_side  a case: contours or surfaces of several runs

They are drawn with Matplotlib's object-oriented interface on the Agg canvas, without pyplot and
without a display. The file's ending chooses the format (png, pdf, svg). The colours are those of
the Okabe-Ito set, which colour-blind readers can tell apart: blue is the reference and voxels that
a prediction lacks, orange the prediction and voxels that it has too much.
"""

from utils.figures.cases import case_figure, error_figure
from utils.figures.masks import UNCERTAIN, MaskRow, masks_figure
from utils.figures.networks import DistanceRow, Heat, HeatRow, heat_figure, sdm_figure
from utils.figures.rows import Case
from utils.figures.side_by_side import (
    Compared,
    contours_figure,
    surfaces_figure,
    together_figure,
)
from utils.figures.style import CLASSES, DPI, FAINT, FORMATS, INK, PREDICTION, REFERENCE, WIDTH
from utils.figures.summaries import Bar, bars_figure, curves_figure, lines_figure, summary_figure
from utils.figures.surfaces import surface_figure

__all__ = [
    "CLASSES",
    "DPI",
    "FAINT",
    "FORMATS",
    "INK",
    "PREDICTION",
    "REFERENCE",
    "UNCERTAIN",
    "WIDTH",
    "Bar",
    "Case",
    "Compared",
    "DistanceRow",
    "Heat",
    "HeatRow",
    "MaskRow",
    "bars_figure",
    "case_figure",
    "contours_figure",
    "curves_figure",
    "error_figure",
    "heat_figure",
    "lines_figure",
    "masks_figure",
    "sdm_figure",
    "summary_figure",
    "surface_figure",
    "surfaces_figure",
    "together_figure",
]
