"""Pieces of an HTML page that needs no network, no other file and no installed font."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from utils.errors import UserError

STYLE = """
:root { --ink: #222; --soft: #6b6b6b; --rule: #d9d9d9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { max-width: 66rem; margin: 3rem auto 6rem; padding: 0 1.5rem; color: var(--ink);
  background: #fff;
  font: 16px/1.5 Charter, "Bitstream Charter", "Source Serif 4", Cambria, Georgia, serif; }
h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 600; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; font-weight: 600; margin: 3.2rem 0 .8rem; padding-top: .8rem;
  border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; font-weight: 600; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; }
a { color: var(--mark); text-decoration: none; }
a:hover { text-decoration: underline; }
.lead { font-size: 1.1rem; color: var(--soft); margin-bottom: 1.2rem; }
.soft, figcaption, .notes { color: var(--soft); font-size: .85rem; }
.notes { margin: .6rem 0 0; padding: 0; list-style: none; line-height: 1.4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.3; margin: .4rem 0 1rem;
  font-variant-numeric: tabular-nums lining-nums; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); }
th { font-weight: 600; text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--ink); }
th, td { padding: .28rem .5rem; white-space: nowrap; }
th:first-child, td:first-child { padding-left: .2rem; }
.number { text-align: right; }
tbody tr + tr td { border-top: 1px solid #f0f0f0; }
tr.aside td { color: var(--soft); font-style: italic; border-top: 0; }
tr.sum td { border-top: 1px solid var(--ink); font-weight: 600; }
.sortable th { cursor: pointer; }
.sortable th:hover { color: var(--mark); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.4rem; margin: .6rem 0;
  font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  background: #f6f6f4; padding: .7rem .9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
figure { margin: 1.1rem 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: .3rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--mark); font-size: .92rem; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10.5pt; }
  h2, h3, figcaption { break-after: avoid; }
  figure, tr, dl, pre { break-inside: avoid; }
  details:not([open]), nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .35rem; }
}
"""

# a click on a column's head sorts by it, largest first; a second click the other way round
SCRIPT = """
for (const head of document.querySelectorAll(".sortable th")) head.onclick = () => {
  const turn = head.dataset.turn = head.dataset.turn === "1" ? "-1" : "1";
  const body = head.closest("table").tBodies[0];
  const text = row => row.cells[head.cellIndex].textContent;
  body.append(...[...body.rows].sort((a, b) =>
    turn * (Number(text(b)) - Number(text(a)) || text(a).localeCompare(text(b)))));
};
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document of blocks of HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title>"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">',
            f"<head>{head}\n<style>{STYLE}</style></head>\n<body>",
            *body,
            f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def text(words: str, tag: str = "p", **attributes: str) -> str:
    """An element that holds plain text."""
    written = "".join(f' {name.rstrip("_")}="{escape(v)}"' for name, v in attributes.items())
    return f"<{tag}{written}>{escape(words)}</{tag}>"


def table(
    cells: Sequence[Sequence[str]],
    numbers: Sequence[int],
    sortable: bool = False,
    aside: str | None = None,
    last: bool = False,
) -> str:
    """A table of plain text under a header.

    Args:
        cells: the header, then the rows.
        numbers: columns set to the right.
        sortable: whether a click on a column's head sorts the rows by it.
        aside: rows of this label are set back.
        last: whether the last row sums up.
    """
    kinds = ["aside" if values[0] == aside else "" for values in cells[1:]]
    if last:
        kinds[-1] = "sum"
    rows = []
    for values, kind in zip(cells[1:], kinds, strict=True):
        rows.append(_row(values, "td", numbers, kind))
    head = f"<thead>{_row(cells[0], 'th', numbers)}</thead>"
    body = "\n".join(["<tbody>", *rows, "</tbody>"])
    kind = " class=sortable" if sortable else ""
    return f'<div class="scroll"><table{kind}>{head}\n{body}</table></div>'


def _row(values: Sequence[str], tag: str, numbers: Sequence[int], kind: str = "") -> str:
    columns = []
    for i, value in enumerate(values):
        right = " class=number" if i in numbers else ""
        columns.append(f"<{tag}{right}>{escape(value)}</{tag}>")
    attribute = f" class={kind}" if kind else ""
    return f"<tr{attribute}>{''.join(columns)}</tr>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and their values; unknown values are left out."""
    known = [text(name, "dt") + text(value, "dd") for name, value in pairs if value]
    return "<dl>" + "\n".join(known) + "</dl>"


def listed(lines: Sequence[str]) -> str:
    """Notes, one a line."""
    return '<ul class="notes">' + "\n".join(text(line, "li") for line in lines) + "</ul>"


def folded(summary: str, blocks: Sequence[str]) -> str:
    """Blocks that a click unfolds; they are not printed while they are folded."""
    return "\n".join(["<details>", text(summary, "summary"), *blocks, "</details>"])


def figure(path: Path, caption: str, wide: int = 1500, width: str = "100%") -> str:
    """A picture, held in the page itself: an SVG as it is, any other as JPEG of at most `wide`
    pixels.

    Raises:
        UserError: the file cannot be read as a picture.
    """
    if path.suffix == ".svg":
        kind, data = "svg+xml", path.read_bytes()
    else:
        kind, data = "jpeg", _jpeg(path, wide)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{escape(caption)}" style="width: {width}" loading="lazy">'
    return f"<figure>{image}{text(caption, 'figcaption') if caption else ''}</figure>"


def _jpeg(path: Path, wide: int) -> bytes:
    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        raise UserError(f"{path}: missing or damaged; delete it, or test again") from None
    if picture.width > wide:
        size = wide, round(picture.height * wide / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=88, optimize=True, subsampling=0)
    return held.getvalue()
