"""All cases of a data set in one picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.figures import CLASSES
from utils.files import write_atomically

TILE = 160  # pixels: of a case's picture in the contact sheet


def contact_sheet(path: Path, rows: Sequence) -> None:
    columns = min(len(rows), max(4, math.ceil(math.sqrt(1.5 * len(rows)))))
    lines, name = -(-len(rows) // columns), 20  # pixels for the name
    sheet = np.zeros((lines * (TILE + name), columns * TILE, 3), np.uint8)
    figure = Figure(
        figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100), dpi=100, facecolor="black"
    )
    FigureCanvasAgg(figure)
    for place, row in enumerate(rows):
        top, left = place // columns * (TILE + name), place % columns * TILE
        sheet[top + name : top + name + TILE, left : left + TILE] = row.tile
        text = f"{row.case} {row.split or ''}".strip()
        colour = CLASSES[1] if row.flags else "white"
        where = (left + 3) / sheet.shape[1], 1 - (top + name / 2) / sheet.shape[0]
        figure.text(
            *where, text if len(text) < 30 else f"…{text[-28:]}", size=6, color=colour, va="center"
        )
    ax = figure.add_axes((0, 0, 1, 1), zorder=-1)
    ax.set_axis_off()
    ax.imshow(sheet, interpolation="nearest", aspect="auto")
    write_atomically(path, lambda part: figure.savefig(part, format="png"))
