"""Shared by all figures: colours, sizes, the page and the text on it."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation

from utils.files import write_atomically

matplotlib.rcParams["text.parse_math"] = False  # a case may be called a$^$b

REFERENCE = "#56B4E9"
PREDICTION = "#E69F00"
INK = "#222222"
FAINT = "#8A8A8A"
# the colours of the classes where there are several
CLASSES = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
DPI = 300
WIDTH = 7.0  # inches: two columns of a journal page
FORMATS = ("png", "pdf", "svg")

# inches
HEAD = 0.28  # a line of text above the panels
OVER = 0.14  # the names of panels below it
FOOT = 0.22  # a legend below the panels
BAR_FOOT = 0.42  # a colour bar below the panels
SIDE = 0.08  # at both sides of the page
GAP = 0.05  # between panels

# keeps white text legible on bright tissue
EDGE = [withStroke(linewidth=1.2, foreground="#000000B0")]


def colour(c: int) -> str:
    """The colour of class `c`, from 1."""
    return CLASSES[(c - 1) % len(CLASSES)]


def canvas(width: float, height: float, **options) -> Figure:
    """An empty figure on the Agg canvas; inches. `options` are those of `Figure`."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def plain(ax: Axes) -> None:
    """Thin axes at the left and below."""
    ax.tick_params(labelsize=7, colors=INK, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)


def page(
    rows: Sequence[Sequence[float]],
    head: float = HEAD,
    foot: float = FOOT,
    left: float = 0.0,
    tallest: float = 3.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows of panels without frames, each row as wide as the page if its height allows.

    Args:
        rows: for each row the aspects of its panels, width over height.
        head, foot, left: inches above, below and beside the panels.
        tallest: largest height of a row in inches.

    Returns:
        The figure, and its axes by row.
    """
    room = WIDTH - 2 * SIDE - left
    heights = [min((room - GAP * (len(row) - 1)) / sum(row), tallest) for row in rows]
    height = head + sum(heights) + GAP * (len(rows) - 1) + foot
    figure = canvas(WIDTH, height)
    axes = []
    bottom = height - head + GAP
    for row, tall in zip(rows, heights, strict=True):
        bottom -= tall + GAP
        x = SIDE + left + (room - tall * sum(row) - GAP * (len(row) - 1)) / 2
        axes.append([])
        for aspect in row:
            ax = figure.add_axes((x / WIDTH, bottom / height, tall * aspect / WIDTH, tall / height))
            ax.set_axis_off()
            axes[-1].append(ax)
            x += tall * aspect + GAP
    return figure, axes


def headline(figure: Figure, title: str, text: str = "") -> None:
    """The title in bold at the left of the first line and `text` at its right, both as large as
    fits.
    """
    line = 1 - 0.5 * HEAD / figure.get_figheight()
    side = SIDE / WIDTH
    words = [figure.text(side, line, title, size=8, weight="bold", color=INK, va="center")]
    if text:
        words.append(
            figure.text(1 - side, line, text, size=7.5, color=INK, va="center", ha="right")
        )
    while sum(word.get_window_extent().width for word in words) / DPI + 0.2 > WIDTH - 2 * SIDE:
        for word in words:
            word.set_fontsize(0.95 * word.get_fontsize())


def legend(figure: Figure, handles: Sequence, labels: Sequence[str], x: float = 0.5) -> None:
    """A legend of one line below the panels, its middle at the share `x` of the width."""
    figure.legend(
        handles=handles,
        labels=labels,
        loc="lower center",
        bbox_to_anchor=(x, 0.03 / figure.get_figheight()),
        ncol=len(handles),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
        borderaxespad=0,
    )


def over(ax: Axes, text: str) -> Annotation:
    """Write above a panel."""
    return ax.annotate(
        text,
        (0.5, 1),
        (0, 2),
        "axes fraction",
        "offset points",
        color=INK,
        size=6.5,
        ha="center",
        va="bottom",
    )


def beside(ax: Axes, text: str) -> None:
    """Write upwards at the left of the page, beside a panel, as large as fits its height."""
    place = ax.get_position()
    figure = ax.figure
    written = figure.text(
        SIDE / WIDTH,
        (place.y0 + place.y1) / 2,
        text,
        ha="left",
        va="center",
        rotation=90,
        multialignment="center",
        size=6.5,
        color=INK,
    )
    room = place.height * figure.get_figheight() * DPI
    while written.get_window_extent().height > room and written.get_fontsize() > 3:
        written.set_fontsize(0.95 * written.get_fontsize())


def white_text(ax: Axes, x: float, y: float, text: str, **options) -> None:
    """Write in white with a dark edge."""
    ax.text(x, y, text, color="white", size=6, path_effects=EDGE, **options)


def corner_text(ax: Axes, text: str) -> None:
    """Write in the upper left corner of an image."""
    ax.annotate(
        text,
        (0, 1),
        (3, -3),
        "axes fraction",
        "offset points",
        color="white",
        size=6,
        va="top",
        path_effects=EDGE,
    )


def bar_length(extents: Sequence[float]) -> float:
    """Length of a scale bar in panels as wide as `extents`: 1, 2 or 5 times a power of ten, at most
    a third of the narrowest.
    """
    third = max(min(extents) / 3, 1e-9)
    power = 10.0 ** np.floor(np.log10(third))
    return float(max(step * power for step in (1, 2, 5) if step * power <= third))


def colour_bar(
    figure: Figure,
    x: float,
    norm: Normalize,
    colours: Colormap,
    sides: tuple[str, str],
    clipped: bool = False,
) -> None:
    """A colour bar below panels that leave `BAR_FOOT`, its middle at the share `x` of the width.

    Args:
        sides: meaning of the lowest and of the highest values.
        clipped: there are values beyond the bar.
    """
    height = figure.get_figheight()
    wide = 2.0
    ax = figure.add_axes((x - wide / 2 / WIDTH, 0.26 / height, wide / WIDTH, 0.08 / height))
    extend = {"extend": "both", "extendfrac": 0.05} if clipped else {}
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=ax, orientation="horizontal", **extend)
    bar.outline.set_linewidth(0.4)
    ax.tick_params(labelsize=6.5, colors=INK, length=2, width=0.4, pad=1.5)
    beyond = 0.08 if clipped else 0.04
    for text, place, ha in zip(sides, (-beyond, 1 + beyond), ("right", "left"), strict=True):
        ax.text(place, 0.5, text, transform=ax.transAxes, ha=ha, va="center", size=7, color=INK)


def small_colour_bar(ax: Axes, norm: Normalize, colours: Colormap, unit: str) -> None:
    """A colour bar as wide as a panel, below it where the page leaves `BAR_FOOT`."""
    figure = ax.figure
    height = figure.get_figheight()
    place = ax.get_position()
    below = figure.add_axes((place.x0, 0.26 / height, place.width, 0.08 / height))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=below, orientation="horizontal")
    bar.outline.set_linewidth(0.4)
    bar.set_ticks([norm.vmin, norm.vmax], labels=["0", f"{norm.vmax:.2g} {unit}"])
    below.tick_params(labelsize=6.5, colors=INK, length=2, width=0.4, pad=1.5)
    low, high = below.get_xticklabels()
    low.set_horizontalalignment("left")
    high.set_horizontalalignment("right")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's ending, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    kind = Path(path).suffix[1:]
    # zlib's level 3 takes half of the time of the usual 6, for a tenth more bytes
    options = {"pil_kwargs": {"compress_level": 3}} if kind == "png" else {}
    # TrueType: publishers refuse Matplotlib's usual Type 3
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        write_atomically(path, lambda part: figure.savefig(part, format=kind, **options))
