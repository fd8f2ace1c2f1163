"""A report of runs that were tested, as one HTML file: opens in any browser without a network, and
prints.

    python code/report.py runs/LA/dmd_8/seed1337                             report.html
    python code/report.py runs/LA/dmd_8:last_nms0 --output dmd.html
    python code/report.py runs/LA/supervised_8 runs/LA/dmd_8 --baseline supervised_8 --output comparison.html

It says what was run (options and where each came from, seeds, commit, hardware), and shows the
results of every class and case, the spread of the metrics, learning curves and the figures of the
cases: best, median and worst, the others folded. Of several runs it begins with the table, tests
and figures of code/compare.py; RUN, --test, --names and --baseline are as there. A row of several
seeds is reported as their mean, with the case figures of the first seed.
"""

import math
import shlex
import tempfile
from pathlib import Path

import _root  # noqa: F401
from utils import command
from utils.errors import UserError
from utils.figures import summary_figure
from utils.files import write_atomically
from utils.metrics import METRICS, NAMES, OVERLAPS, SHOWN
from utils.reporting import html, plots
from utils.reporting.compare import COMPONENTS, PUBLISHED, compare
from utils.reporting.results import command_of_test, open_entries
from utils.reporting.statistics import spread
from utils.reporting.tables import difference_table, empty_predictions, heading, legend, table

PLACES = ("best", "median", "worst")


def arguments(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run or of its seeds, or folder:results"
    )
    parser.add_argument(
        "--test",
        default="last",
        metavar="RESULTS",
        help="name of the results, a folder below <run>/test/",
    )
    parser.add_argument("--output", default="report.html", metavar="FILE", help="file to write")
    parser.add_argument(
        "--baseline",
        metavar="ROW",
        help="row that the others are tested against: its name in the table, or folder",
    )
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="of the rows, in their order (default: of the folders)",
    )
    which = {"choices": ("all", "three", "none"), "default": "all"}
    parser.add_argument(
        "--cases", **which, help="whose figures: all, the best, median and worst, or none's"
    )
    return parser.parse_args(argv)


# ------------------------------------------------------------------------------------------------------------ one run


def what_was_run(entry):
    """The facts of an entry."""
    trained, summary, test = entry.first.trained, entry.first.summary, entry.first.summary["test"]
    parts = [part for result in entry.results for part in result.environments()]
    commits = dict.fromkeys(
        (part.get("commit") or "unknown")[:10] + ", modified" * bool(part.get("dirty"))
        for part in parts
    )
    machines = dict.fromkeys("; ".join(part.get("devices", ())) for part in parts)
    names = ("python", "torch", "numpy", "cuda")
    versions = dict.fromkeys(
        ", ".join(f"{n} {part[n]}" for n in names if part.get(n)) for part in parts
    )
    minutes = [result.training_minutes() for result in entry.results]
    crops = [
        f"{trained[k]} {what}"
        for k, what in (("labeled_bs", "labelled"), ("unlabeled_bs", "unlabelled"))
        if trained.get(k)
    ]
    samples = "slices" if len(trained.get("patch", ())) == 2 else "crops"
    components = COMPONENTS.get(test["nms"], "all")
    stride = test.get("stride")
    network = " ".join(str(trained.get(key, "")) for key in ("net", "normalization")).strip()
    filters = f", {trained['n_filters']} filters" if "n_filters" in trained else ""
    resolution = (
        f", at 1/{trained['downsample']} of the resolution"
        if trained.get("downsample", 1) != 1
        else ""
    )
    alone = (
        f" of {summary['listed_cases']}"
        if summary["cases"] < summary.get("listed_cases", 0)
        else ""
    )
    return [
        ("method", trained["method"]),
        ("data", f"{trained['dataset']}, {trained['labelnum']} labelled{resolution}"),
        ("network", network + filters),
        (
            "training",
            f"{summary['step']} steps" + (f" of {' and '.join(crops)} {samples}" if crops else ""),
        ),
        ("seeds" if len(entry.seeds) > 1 else "seed", ", ".join(map(str, entry.seeds))),
        (
            "time",
            ", ".join(f"{m:.0f} min" for m in minutes) + " of training" if all(minutes) else "",
        ),
        ("hardware", "; ".join(machines)),
        ("software", "; ".join(versions)),
        ("commit", "; ".join(commits)),
        ("started", ", ".join(dict.fromkeys(part.get("started", "")[:10] for part in parts))),
        ("checkpoint", f"{summary['checkpoint']}: {summary['selection']}"),
        ("tested on", f"{summary['cases']}{alone} cases of {summary.get('list', 'the test list')}"),
        (
            "prediction",
            f"windows with stride {', '.join(map(str, stride))}" if stride else "slice by slice",
        ),
        ("components", f"{components} kept"),
        ("scored", f"{summary.get('scored', 'whole volumes')}; {summary['empty']}"),
        ("folder", ", ".join(str(result.folder) for result in entry.results)),
    ]


def commands(entry):
    """What was typed, as far as the runs recorded it."""
    lines = []
    for result in entry.results:
        trained = result.trained
        given = result.sources().get("command line", [])
        flags = [
            f"--{name}{_typed(trained[name])}"
            for name in given
            if trained[name] not in (None, False)
        ]
        if given:
            lines.append(_folded([f"python code/train_{trained['method']}.py", *flags]))
        lines.append(
            command_of_test(result.folder, result.tag, trained["dataset"], result.summary["test"])
        )
    return html.text("\n".join(lines), "pre")


def _folded(parts, width=100):
    """A command on several lines, as a shell takes it."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def _typed(value):
    if value is True:
        return ""
    return " " + " ".join(
        shlex.quote(str(v)) for v in (value if isinstance(value, list) else [value])
    )


def option_table(result):
    """Every option of the training, and where its value came from."""
    source = {name: where for where, names in result.sources().items() for name in names}
    shown = {k: v for k, v in result.trained.items() if v is not None}
    rows = [
        [k, ", ".join(map(str, v)) if isinstance(v, list) else str(v), source.get(k, "")]
        for k, v in shown.items()
    ]
    return html.table(
        [["option", "value", "from"], *sorted(rows, key=lambda row: (row[2], row[0]))], ()
    )


def class_table(entry):
    """Mean ± sd over cases of every metric: of each class, and of their mean."""
    classes = entry.first.classes
    groups = [*classes.items(), *([(None, "mean over classes")] if len(classes) > 1 else [])]
    cells = [["class", *map(heading, METRICS), "empty"]]
    for number, name in groups:
        rows = [
            row for result in entry.results for row in result.rows if number in (None, row["class"])
        ]
        empty = sum(row["prediction_voxels"] == 0 for row in rows)
        cells.append(
            [name, *(_spread(entry.cases(m, number).values(), m) for m in METRICS), str(empty)]
        )
    return html.table(cells, range(1, len(cells[0])), last=len(classes) > 1)


def seed_table(entry):
    """The mean over cases of each seed."""
    cells = [["seed", *map(heading, METRICS)]]
    for result in entry.results:
        cells.append(
            [
                str(result.seed),
                *(_number(spread(list(result.cases(m).values())).mean, m) for m in METRICS),
            ]
        )
    cells.append(["mean ± sd over seeds", *(_spread(entry.seed_means(m), m) for m in METRICS)])
    return html.table(cells, range(1, len(cells[0])), last=True)


def case_table(entry, rows):
    """Every case and class, best Dice first."""
    several = len(entry.first.classes) > 1
    head = [
        "case",
        *(["class"] if several else []),
        *map(heading, METRICS),
        "prediction",
        "reference",
    ]
    cells = [
        [
            row["case"],
            *([row["class_name"]] if several else []),
            *(_number(row[m], m) for m in METRICS),
            *(f"{row[key]:.0f}" for key in ("prediction_voxels", "reference_voxels")),
        ]
        for row in sorted(rows, key=lambda row: _worth(row["dice"]))
    ]
    return html.table([head, *cells], range(2 if several else 1, len(head)), sortable=True)


def case_rows(entry):
    """The rows of `per_case.csv`, numbers their mean over the seeds."""
    groups = {}
    for result in entry.results:
        for row in result.rows:
            groups.setdefault((row["case"], row["class"]), []).append(row)
    numbers = (*METRICS, "prediction_voxels", "reference_voxels")
    return [
        rows[0] | {key: spread([row[key] for row in rows]).mean for key in numbers}
        for rows in groups.values()
    ]


def case_figures(result, which):
    """The figures of the best, median and worst case by Dice, and of the others, folded."""
    dice = result.cases("dice")
    order = sorted(dice, key=lambda case: (_worth(dice[case]), case))
    if which == "none":
        return []
    if not any(_picture(result, case) for case in order):
        return [html.text("No figures of cases: the test drew none in PNG or SVG.", class_="soft")]
    ends = dict(zip((order[0], order[len(order) // 2], order[-1]), PLACES, strict=True))

    def shown(case):
        words = f"{ends[case]} of {len(order)} by Dice" if case in ends and len(order) > 1 else ""
        path = _picture(result, case)
        blocks = [html.figure(path, words) if path else html.text(f"{case}: no figure. {words}")]
        more = [
            path for kind in ("errors", "surface") if (path := _picture(result, f"{case}_{kind}"))
        ]
        if case in ends and more:
            blocks.append(
                html.folded("errors and surfaces", [html.figure(path, "") for path in more])
            )
        return "\n".join(blocks)

    others = [case for case in order if case not in ends]
    blocks = [shown(case) for case in ends]
    if others and which == "all":
        blocks.append(html.folded(f"the other {len(others)} cases, best first", map(shown, others)))
    return blocks


def _picture(result, name):
    """A figure of the test in a format that a page can hold, or None."""
    paths = (result.path / "figures" / f"{name}.{kind}" for kind in ("png", "svg"))
    return next((path for path in paths if path.is_file()), None)


def report_entry(entry, folder, args, level):
    """The blocks of one entry; figures are drawn in `folder`."""
    result, metrics = entry.first, entry.first.summary["test"].get("metrics") or SHOWN
    unit, rows = result.summary["units"]["hd"], case_rows(entry)
    blocks = [html.facts(what_was_run(entry)), commands(entry)]
    blocks.append(html.folded("all options, and where each came from", [option_table(result)]))
    blocks += [html.text("Results", level), class_table(entry)]
    over = f"; each case the mean over {len(entry.seeds)} seeds" if len(entry.seeds) > 1 else ""
    blocks.append(
        html.text(f"Mean ± sample sd over cases{over}; distances in {unit}.", class_="soft")
    )
    if len(entry.seeds) > 1:
        blocks.append(seed_table(entry))
    names = list(result.classes.values())
    summary_figure(folder / "summary.svg", rows, "", unit, class_names=names, metrics=metrics)
    blocks.append(html.figure(folder / "summary.svg", "Every case, a panel a metric."))
    if plots.training_figure(folder / "curves.svg", result):
        seed = f" of seed {result.seed}" if over else ""
        blocks += [
            html.text("Training", level),
            html.figure(
                folder / "curves.svg", f"Learning curves{seed}: as recorded (faint) and smoothed."
            ),
        ]
    figures = case_figures(result, args.cases)
    if figures:
        seed = f", seed {result.seed}" if over else ""
        blocks += [html.text(f"Cases{seed}", level), *figures]
    words = "Prediction and reference in voxels. A click on a column's head sorts by it."
    return [
        *blocks,
        html.text("Case by case", level),
        case_table(entry, rows),
        html.text(words, class_="soft"),
    ]


# ----------------------------------------------------------------------------------------------------------- all runs


def report_comparison(compared, folder):
    """The blocks on all entries: tables, notes, figures."""
    main = table(compared)
    blocks = [html.table(main, range(1, len(main[0]) - 3), aside=PUBLISHED)]
    if compared.differences:
        cells = difference_table(compared)
        blocks.append(html.table(cells, range(1, len(cells[0]) - 3)))
    blocks.append(html.listed(legend(compared)))
    drawn = list(plots.draw(compared, folder, "svg"))
    pairs = [path for path in drawn if path.stem.startswith("pairs_")]
    for path in drawn:
        if path not in pairs[1:]:
            width = "50%" if path.stem == "labels" else "100%"
            blocks.append(html.figure(path, CAPTIONS[path.stem.split("_")[0]], width=width))
    if pairs[1:]:
        blocks.append(
            html.folded("pairs by the other metrics", [html.figure(path, "") for path in pairs[1:]])
        )
    return blocks


CAPTIONS = {
    "boxes": "Every case under every run.",
    "pairs": "Each case under the baseline and under another run.",
    "curves": "Learning curves: as recorded (faint) and smoothed.",
    "labels": "Dice by the number of labelled cases.",
}


def main(argv=None):
    args = arguments(argv)
    entries = open_entries(args.runs, args.test, args.names or ())
    compared = compare(entries, (), args.baseline)
    data = ", ".join(dict.fromkeys(entry.first.trained["dataset"] for entry in entries))
    alone = len(entries) == 1
    title = f"{entries[0].label} on {data}" if alone else f"{len(entries)} runs on {data}"
    blocks = [html.text(title, "h1")]
    with tempfile.TemporaryDirectory() as place:
        if alone:
            cells = compared.cells[entries[0].label]
            units = {
                m: "%" if m in OVERLAPS else entries[0].first.summary["units"][m]
                for m in compared.metrics
            }
            shown = [
                f"{NAMES[m]} {_spread_of(cells[m].cases)} {units[m]}" for m in compared.metrics
            ]
            empty = empty_predictions(entries[0])
            cases = f"{len(entries[0].case_names)} cases" + (
                f", {empty} empty predictions" if empty else ""
            )
            blocks += [html.text(f"{', '.join(shown)} over {cases}.", class_="lead")]
            known = compared.published.get(entries[0].label, {})
            printed = ", ".join(
                f"{NAMES[m]} {value:.2f} {units[m]}" for m, value in known.items() if m in units
            )
            lines = [f"As published: {printed}."] * bool(printed) + compared.notes
            blocks += [html.text(line, class_="soft") for line in lines]
        else:
            links = [
                f'<a href="#run{i}">{html.escape(entry.label)}</a>'
                for i, entry in enumerate(entries)
            ]
            blocks += [
                f'<nav class="lead">{" · ".join(links)}</nav>',
                *report_comparison(compared, Path(place)),
            ]
        for i, entry in enumerate(entries):
            heads = [] if alone else [html.text(entry.label, "h2", id=f"run{i}")]
            blocks += [*heads, *report_entry(entry, Path(place), args, "h2" if alone else "h3")]
    text, output = html.page(title, blocks), Path(args.output)
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder; make it, or name another --output")
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{output}, {len(text) / 2**20:.1f} MB")


def _worth(dice):
    """Sorts the best first, and last what was not scored."""
    return math.inf if math.isnan(dice) else -dice


def _number(value, metric):
    return "-" if math.isnan(value) else f"{100 * value if metric in OVERLAPS else value:.2f}"


def _spread(values, metric):
    factor = 100 if metric in OVERLAPS else 1
    return _spread_of(spread([factor * value for value in values]))


def _spread_of(found):
    if not found.n:
        return "-"
    return f"{found.mean:.2f}" + (f" ± {found.sd:.2f}" if found.n > 1 else "")


if __name__ == "__main__":
    command.run(main)
