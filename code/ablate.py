"""The tables and figures of the papers: the commands that train and test each row, and the rows
filled in.

    python code/ablate.py --list                                        every table, one line each
    python code/ablate.py ugmcl-table1 --labelnum 16                    its commands, for a shell or a scheduler
    python code/ablate.py ugmcl-table1 --labelnum 16 --run              runs them one after another, then the table
    python code/ablate.py ugmcl-table1 --labelnum 16 --fill             the table alone, with what is there
    python code/ablate.py coranet-table8 --dataset LA --labelnum 8 --seeds 1337 1338 1339 --run

Results come from runs/<dataset>/<name>/seed<seed>/test/, means over cases and then over seeds (±
sample sd over seeds); beside them stand the numbers that the paper prints for this very row, data
set and number of labels, and `-` where we know none. --run skips what is finished and goes on with
what was stopped (the training scripts resume exactly), so the same command again continues. A row
that comes to the defaults is the run without a name, and no two tables train it twice. A quick
look: --extra "--downsample 2 --max_iterations 2000" --runs runs_quick.
"""

import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import _root  # noqa: F401
from dataloaders import dataset_class
from utils import command
from utils.errors import UserError
from utils.evaluation.test_script import GUESTS
from utils.metrics import SHOWN
from utils.reporting import experiments, tables
from utils.reporting.experiments import Row, Table
from utils.reporting.published import METRICS, PUBLISHED

CODE = Path(__file__).resolve().parent
OWN = (
    "--dataset",
    "--labelnum",
    "--seed",
    "--gpu",
    "--root",
    "--runs",
    "--name",
    "--resume",
)  # not for --extra
UNITS = {
    "LA": 80,
    "ACDC": 70,
    "BraTS2019": 250,
    "Pancreas": 62,
    "Pancreas2d": 62,
    "endocardium": 25,
}  # for training
UNITS |= {"phantom": 80, "phantom2d": 80}

# supervised training in CoraNet's paper: trained otherwise than `train_supervised.py` does, so told
# below a table and never beside a row
CORANET_BASELINES = {
    (
        "Pancreas",
        12,
    ): "Dice 69.96, Jaccard 55.55, HD 14.27, ASD 1.64, from Adam and a V-Net with instance norm",
    (
        "Pancreas2d",
        31,
    ): "Dice 57.53, precision 67.78, recall 52.92, HD 27.65, from Adam and a wider U-Net",
    (
        "endocardium",
        5,
    ): "Dice 76.13, precision 82.73, recall 74.62, HD 15.80, from Adam and a wider U-Net",
    ("ACDC", 70): "Dice 88.79, from Adam and a wider U-Net",
}


def dice(value, holds):
    """The published numbers of a row of which the paper gives Dice alone, where `holds`."""
    return (value, None, None, None) if holds else None


def units(dataset, share):
    """A share of the training units, half a unit rounded up."""
    return math.floor(share * UNITS[dataset] + 0.5)


# ------------------------------------------------------------------------------------------------- all methods at once


def comparison(dataset, n):
    return [
        Row("supervised", "supervised"),
        Row("DMD", "dmd", test="--nms 0"),
        Row("DTML", "dtml"),
        Row("UG-MCL", "ugmcl"),
        Row("CML", "cml"),
        Row("CoraNet", "coranet"),
        Row("supervised, all labels", "supervised", labelnum=units(dataset, 1)),
    ]


# ----------------------------------------------------------------------------------------------------------------- DMD


def dmd_temperature(dataset, n):
    return [
        Row(f"T = {t}", "dmd", f"--temperature {t}", f"t{t}", "--nms 0")
        for t in (1, 1.93, 2, 3, 4, 5)
    ]


def dmd_lambda(dataset, n):
    return [
        Row(
            f"{name}, λ = {w}",
            "dmd",
            f"--distill {kind} --lambda_distill {w}",
            f"{kind}{w}",
            "--nms 0",
        )
        for name, kind in (("Dice", "dice"), ("KL", "kl"))
        for w in range(1, 7)
    ]


def dmd_rivals(dataset, n):
    """CPS is that of `train_cml.py`, with the steps, crops and learning rate of DMD."""
    here, data = (dataset, n) == ("LA", 8), dataset_class(dataset)
    cps = (
        "--framework cps --pretrain_iterations 0 --max_iterations 6000 --lr_step 2500 --lambda_u 1"
    )
    cps += f" --labeled_bs {data.labeled_bs} --unlabeled_bs {data.unlabeled_bs}"
    return [
        Row("CPS", "cml", cps, "cps_6000", "--network net --nms 0", published=dice(87.49, here)),
        Row("MC-Net", published=dice(87.71, here)),
        Row(
            "DML",
            "dmd",
            "--distill kl --temperature 1",
            "dml",
            "--nms 0",
            published=dice(88.19, here),
        ),
        Row("DMD", "dmd", test="--nms 0"),
    ]


# ---------------------------------------------------------------------------------------------------------------- DTML


def dtml_loss(dataset, n):
    here = (dataset, n) == ("LA", 16)
    return [
        Row("L_sdm", "dtml", "--dis_loss sdm", "sdm", published=dice(89.72, here)),
        Row("L_mask", "dtml", "--dis_loss mask"),
        Row("L_sdm + L_mask", "dtml", "--dis_loss both", "both", published=dice(89.89, here)),
    ]


def dtml_tasks(dataset, n):
    """M_s and M_d alone are one run: without the consistency the two never meet."""
    here, alone = (dataset, n) == ("LA", 16), "--consistency 0 --unlabeled 0"
    return [
        Row("M_s alone", "dtml", alone, "alone", published=dice(86.03, here)),
        Row("M_d alone", "dtml", alone, "alone", "--network dis", published=dice(88.69, here)),
        Row(
            "DTML, labelled alone", "dtml", "--unlabeled 0", "labelled", published=dice(89.17, here)
        ),
        Row("DTML", "dtml"),
    ]


# -------------------------------------------------------------------------------------------------------------- UG-MCL


def ugmcl_terms(dataset, n):
    return [
        Row("L_seg (supervised)", "supervised"),
        Row("L_seg, beside unlabelled crops", "ugmcl", "--terms", "seg"),
        Row("L_seg + L_dis", "ugmcl", "--terms dis", "dis"),
        Row("without L_dis", "ugmcl", "--terms itc ctc", "itc_ctc"),
        Row("without L_itc", "ugmcl", "--terms dis ctc", "dis_ctc"),
        Row("without L_ctc", "ugmcl", "--terms dis itc", "dis_itc"),
        Row("all", "ugmcl", "--terms dis itc ctc"),
    ]


def ugmcl_beta(dataset, n):
    return [
        Row(f"β = {beta}", "ugmcl", f"--beta {beta}", f"beta{beta}")
        for beta in (0, 0.25, 0.5, 0.75, 1)
    ]


def ugmcl_threshold(dataset, n):
    return [
        Row("U_max", "ugmcl", "--threshold_start 1", "threshold1"),
        Row("1/2 U_max to U_max", "ugmcl", "--threshold_start 0.5", "threshold0.5"),
        Row("3/4 U_max to U_max", "ugmcl", "--threshold_start 0.75", "threshold0.75"),
    ]


def ugmcl_labels(dataset, n):
    return [
        Row(f"{name}, {percent} %", script, labelnum=units(dataset, percent / 100))
        for percent in (5, 10, 20, 30, 40, 50)
        for name, script in (("supervised", "supervised"), ("UG-MCL", "ugmcl"))
    ]


# ----------------------------------------------------------------------------------------------------------------- CML


def cml_terms(dataset, n):
    reported = {
        ("LA", 8): (82.74, None, 13.35, 3.26),
        ("ACDC", 7): (79.41, None, None, None),
    }  # by CML itself
    return [
        Row("L_sup^l (supervised)", "supervised", published=reported.get((dataset, n))),
        Row("L_sup^l + L_dis", "cml", "--lambda_u 0", "u0"),
        Row("L_sup^l + L_sup^u", "cml", "--lambda_dis 0", "dis0"),
        Row("all", "cml"),
    ]


def cml_box(dataset, n):
    shares = {"1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3, "5/6": 5 / 6}
    return [
        Row(f"β = {name}", "cml", f"--beta {s}", f"beta{name.replace('/', '-')}")
        for name, s in shares.items()
    ]


def cml_frameworks(dataset, n):
    return [Row(name.upper(), "cml", f"--framework {name}", name) for name in ("cps", "cfl", "cml")]


def cml_lambda(dataset, n):
    return [
        Row(f"{symbol} = {weight}", "cml", f"--lambda_{name} {weight}", f"{name}{weight}")
        for symbol, name in (("λ₁", "u"), ("λ₂", "dis"))
        for weight in (0.1, 0.2, 0.5, 1)
    ]


# ------------------------------------------------------------------------------------------------------------- CoraNet


def coranet_ratios(dataset, n):
    return [
        Row(f"{name}, 1 : {unlabelled}", script, labelnum=units(dataset, 1 / (1 + unlabelled)))
        for unlabelled in (4, 2, 1)
        for name, script in (("supervised", "supervised"), ("CoraNet", "coranet"))
    ]


def coranet_terms(dataset, n):
    here = (dataset, n) == ("Pancreas2d", 31)
    printed = {
        "seg": 60.10,
        "seg+st": 62.33,
        "seg+st_mask": 64.23,
        "seg+mt": 61.23,
        "seg+mt_mask": 63.69,
    }
    rows = [
        Row(t, "coranet", f"--train {t}", t, published=dice(value, here))
        for t, value in printed.items()
    ]
    return [*rows, Row("full", "coranet", "--train full")]


def coranet_uncertainty(dataset, n):
    kinds = {"TTA": "tta", "MC dropout": "mcdropout", "aleatoric": "aleatoric", "CRM": "crm"}
    return [Row(name, "coranet", f"--uncertainty {kind}", kind) for name, kind in kinds.items()]


def coranet_alpha(dataset, n):
    return [
        Row(f"α = {alpha}", "coranet", f"--alpha {alpha}", f"alpha{alpha}")
        for alpha in (1, 2, 5, 10)
    ]


def coranet_backbones(dataset, n):
    resnet = (80.58, 67.91, None, 2.27, 8.34) if (dataset, n) == ("Pancreas", 12) else None
    return [
        Row("supervised", "supervised"),
        Row("CoraNet, V-Net", "coranet", "--net vnet", "vnet"),
        Row("CoraNet, ResNet-18", "coranet", "--net resnet18", "resnet18", published=resnet),
    ]


def coranet_classes(dataset, n):
    return [
        Row("supervised, all labels", "supervised", labelnum=units(dataset, 1)),
        Row("a binary CoraNet a class", "coranet", "--multiclass one_vs_rest", "one_vs_rest"),
        Row("one CoraNet", "coranet", "--multiclass direct", "direct"),
    ]


BETWEEN = (
    "Of the rows between the first and the last the paper prints {}; which is which we do not know."
)
TABLES = {
    "comparison": Table("every method of this repository, and both supervised bounds", comparison),
    "dmd-fig3b": Table("DMD, Fig. 3b: temperature", dmd_temperature),
    "dmd-fig4": Table("DMD, Fig. 4: weight of the distillation, by Dice or KL", dmd_lambda),
    "dmd-table3": Table(
        "DMD, Table 3: CPS, MC-Net, DML, DMD",
        dmd_rivals,
        labelnum=8,
        note="CPS is CML's: CE and Dice, pseudo-labels cleaned of small components, linear upsampling in one network; "
        "the paper's is DMD's pair with cross-entropy alone.",
    ),
    "dtml-table1": Table("DTML, Table 1: what M_d learns", dtml_loss),
    "dtml-table2": Table(
        "DTML, Table 2: each network alone, and without unlabelled data", dtml_tasks
    ),
    "ugmcl-table1": Table(
        "UG-MCL: terms of the loss",
        ugmcl_terms,
        note=BETWEEN.format("87.88, 88.68, 89.15 and 89.42 (LA, 16)")
        + " The second row is not the paper's: the first has labelled crops alone and halves its loss.",
    ),
    "ugmcl-beta": Table("UG-MCL: share of the probabilities in L_itc", ugmcl_beta),
    "ugmcl-threshold": Table("UG-MCL: threshold of the certain voxels", ugmcl_threshold),
    "ugmcl-labels": Table(
        "UG-MCL: 5 to 50 % labels",
        ugmcl_labels,
        labelnum=None,
        note="With 5 % of LA the paper is 21.07 points of Dice above supervised training; we know no more of it.",
    ),
    "cml-table4": Table(
        "CML, Table 4: terms of the loss",
        cml_terms,
        labelnum=8,
        note=BETWEEN.format("83.73 and 88.16 (LA, 8), 80.27 and 87.75 (ACDC, 7)"),
    ),
    "cml-beta": Table("CML: box of CutMix", cml_box, labelnum=8),
    "cml-lambda": Table("CML: weights of the loss", cml_lambda, labelnum=8),
    "cml-framework": Table("CML: CPS, CFL, CML", cml_frameworks, labelnum=8),
    "coranet-table3": Table(
        "CoraNet, Table III: labelled to unlabelled cases", coranet_ratios, "Pancreas2d", None
    ),
    "coranet-table4": Table(
        "CoraNet, Table IV: terms of the loss and their masks", coranet_terms, "Pancreas2d", 31
    ),
    "coranet-table6": Table(
        "CoraNet, Table VI: measure of uncertainty", coranet_uncertainty, "Pancreas2d", 31
    ),
    "coranet-table8": Table("CoraNet, Table VIII: cost ratio", coranet_alpha, "Pancreas2d", 31),
    "coranet-3d": Table("CoraNet in 3-D, by network", coranet_backbones, "Pancreas", 12),
    "coranet-acdc": Table("CoraNet with several classes", coranet_classes, "ACDC", 14),
}


def arguments():
    parser = command.Parser(__doc__, __file__)
    parser.add_argument("table", nargs="?", help="its name: --list shows all")
    parser.add_argument("--list", action="store_true", help="every table, one line each")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--run", action="store_true", help="run the commands one after another, then fill the table"
    )
    what.add_argument(
        "--fill", action="store_true", help="the table alone, with the results that there are"
    )
    parser.add_argument("--dataset", choices=sorted(UNITS), help="default: the table's")
    parser.add_argument(
        "--labelnum", type=command.positive_int, help="default: the table's, else the data set's"
    )
    parser.add_argument(
        "--seeds", type=command.non_negative_int, nargs="+", default=[1337], help="one run each"
    )
    parser.add_argument("--gpu", help="as of the scripts")
    parser.add_argument("--root", help="folder of the data (default: data/<dataset>)")
    parser.add_argument("--runs", default="runs", help="folder of all runs")
    parser.add_argument(
        "--extra", type=shlex.split, default=[], help='for each training: "--downsample 2 …"'
    )
    parser.add_argument(
        "--format", choices=("text", "markdown"), default="text", help="of the table"
    )
    return parser.parse_args()


def plan(table, args):
    """`(row, jobs)` of each row, a job a seed; one that comes to the defaults has the method's
    published numbers.
    """
    dataset, labelnum = args.dataset or table.dataset, args.labelnum
    if table.labelnum is None and labelnum:
        raise UserError(
            f"--labelnum {labelnum}: the rows of {args.table} differ in it; leave it out"
        )
    labelnum = labelnum or (
        table.labelnum if dataset == table.dataset else dataset_class(dataset).labelnum
    )
    test = CODE / f"test_{GUESTS.get(dataset, dataset)}.py"
    places = {
        flag: value
        for flag, value in (("--gpu", args.gpu), ("--root", args.root))
        if value is not None
    }
    rows = []
    for row in table.rows(dataset, labelnum):
        jobs, n = [], row.labelnum or labelnum
        for seed in args.seeds if row.method else ():
            train = CODE / f"train_{row.method}.py"
            jobs.append(
                experiments.make_job(
                    row, train, test, dataset, n, seed, args.runs, places, args.extra
                )
            )
        if jobs and jobs[0].default and row.published is None:
            row = replace(row, published=PUBLISHED[row.method].get((dataset, n)))
        rows.append((row, jobs))
    return rows


def baselines(rows):
    """Lines on what CoraNet's paper has for the supervised rows, and why it does not stand beside
    them.
    """
    trained = [job.options for row, jobs in rows if row.method == "supervised" for job in jobs[:1]]
    known = {
        (options["dataset"], options["labelnum"]) for options in trained
    } & CORANET_BASELINES.keys()
    return [
        f"Supervised with {n} labels CoraNet's paper has {CORANET_BASELINES[dataset, n]}; "
        "the row is of SGD and batch norm, so it is another one."
        for dataset, n in sorted(known)
    ]


def main():
    args = arguments()
    if args.list:
        for name, table in TABLES.items():
            labels = f", {table.labelnum} labels" if table.labelnum else ""
            print(f"{name:15} {table.title} ({table.dataset}{labels})")
        return
    if args.table is None:
        raise UserError("name a table: --list shows all")
    table = experiments.find_table(TABLES, args.table)
    taken = [flag for flag in args.extra if flag.split("=")[0] in OWN]
    if taken:
        raise UserError(
            f"--extra {taken[0]}: it is set for every row; see the options of this script itself"
        )
    rows = plan(table, args)

    for row, job, line in () if args.fill else experiments.commands(rows):
        done = job.result()[0] is not None
        print(f"{experiments.shell(line)}  # {row.label}{', done' if done else ''}", flush=True)
        if args.run and not done and (status := experiments.call(line)):
            sys.exit(
                f"ablate.py: the rest is not run, exit status {status} from: "
                f"{experiments.shell(line)}"
            )
    if args.fill or args.run:
        dataset = args.dataset or table.dataset
        cells, notes = experiments.fill(rows, METRICS.get(dataset, SHOWN))
        notes = [table.note] * bool(table.note) + baselines(rows) + notes
        if args.extra:
            notes.insert(
                0,
                f"Trained with {shlex.join(args.extra)}: the published numbers are not of this "
                "setting.",
            )
        print(f"\n{table.title} ({dataset})\n\n{tables.render(cells, args.format)}")
        if notes:
            print("", *notes, sep="\n")


if __name__ == "__main__":
    command.run(main)
