"""The style of the figures of several runs: the page, plain axes, colours, the legend."""

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.figures import style
from utils.figures.style import CLASSES, FAINT, INK, WIDTH

Look = tuple[str, str]  # colour and line style
COLOURS = tuple(CLASSES[place] for place in (6, 1, 2, 3, 5, 0))  # not yellow: faint on paper
STYLES = ("-", "--", ":")  # for the second and third round of colours


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Colour and line style by label, in the order of the labels."""
    found = {}
    for i, label in enumerate(labels):
        rounds, place = divmod(i, len(COLOURS))
        found[label] = COLOURS[place], STYLES[rounds % len(STYLES)]
    return found


def page(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that lays out its panels; inches."""
    figure = style.canvas(width, height, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # names below neighbouring panels stay apart
    return figure


def plain(ax: Axes) -> None:
    """Thin axes at the left and below."""
    style.plain(ax)
    ax.tick_params(which="minor", length=1.2, color=FAINT, labelsize=6)


def legend(figure: Figure, labels: Mapping[str, Look], words: str = "") -> None:
    """A line a label below the figure, as many side by side as have room."""
    handles = [Line2D([], [], color=colour, ls=line, lw=1.6) for colour, line in labels.values()]
    inches = 0.065 * max(map(len, labels)) + 0.5  # of the letters, and of the line
    room = int(figure.get_figwidth() / inches)
    figure.legend(
        handles,
        list(labels),
        title=words,
        title_fontsize=6,
        loc="outside lower center",
        ncols=max(1, min(len(labels), room)),
        fontsize=7,
        frameon=False,
        labelcolor=INK,
    )
    figure.legends[0].get_title().set_color(FAINT)


def foot(figure: Figure, words: str) -> None:
    """A line of small text below the panels."""
    figure.supxlabel(words, size=6, color=FAINT)
