"""Make data/endocardium, the left ventricle's cavity of 33 subjects, from York University's cardiac
MRI data set.

    python code/prepare_endocardium.py cardiac_mri
    python code/prepare_endocardium.py DOWNLOAD --lists lists

The second command takes your own train.list and test.list of pat<number>, which are in lists/.
Without --lists 25 subjects train and 8 test, drawn from --seed.

Reads sol_yxzt_pat<number>.mat (y, x, level, time) and manual_seg_32points_pat<number>.mat in any
folder below DOWNLOAD. Writes <root>/data/pat<number>.h5 as (slices, y, x), the times of a level one
after the other, the lists, report.csv and overlays.png; look at the last two. The voxels' size is
not in these files.

A contour is 65 points (x, y): 32 of the endocardium, a line of zeros, 32 of the epicardium; -99999
stands where nothing was drawn. The label is the polygon of the first 32, in coordinates that count
the first pixel's centre as 1, and is empty where nothing was drawn. Grey values are scaled to 0 to
1 by the subject's least and largest one. CoraNet's authors do not print their
scaling of grey values or their training subjects. So numbers are comparable with theirs, but not
equal.
"""

import re
import sys
from pathlib import Path

import numpy as np
import scipy.io
import SimpleITK
from matplotlib.path import Path as Polygon

import _root  # noqa: F401
from dataloaders.endocardium import Endocardium
from utils import command
from utils.errors import UserError
from utils.preparation.cases import write_case
from utils.preparation.lists import draw_lists, read_lists
from utils.preparation.official import add_options, prepare_all, stamp
from utils.preparation.preprocess import preprocess
from utils.preparation.report import Report

NAME = re.compile(r"sol_yxzt_(pat\d+)\.mat")


def parse(argv=None):
    parser = command.Parser(__doc__, __file__)
    parser.add_argument(
        "download", type=Path, metavar="DOWNLOAD", help="folder of the unpacked .mat files"
    )
    add_options(
        parser,
        "data/endocardium",
        "folder of the lists to take, train.list and test.list",
        "subjects at a time, 1 GB each",
    )
    return parser.parse_args(argv)


def find(download):
    """The files of each subject, images and contours."""
    drawn = {path.name: path for path in sorted(download.rglob("manual_seg_32points_pat*.mat"))}
    subjects = {}
    found = sorted(
        download.rglob("sol_yxzt_pat*.mat"), key=lambda path: (len(path.name), path.name)
    )
    for path in found:
        match = NAME.fullmatch(path.name)
        if match:
            contours = f"manual_seg_32points_{match[1]}.mat"
            subjects[match[1]] = path, drawn.get(contours, download / contours)
    if not subjects:
        raise UserError(
            f"{download}: no sol_yxzt_pat<number>.mat below this folder; name the data set's folder"
        )
    return subjects


def choose(subjects, args):
    """The subjects of each list: the given ones, or 8 of 33 for testing."""
    if args.lists:
        files = {split: args.lists / f"{split}.list" for split in ("train", "test")}
        return read_lists(files, "subject")
    return draw_lists(list(subjects), {"test": 8 / 33}, args.seed)


def load(path, key, ndim):
    """The array `key` of a MATLAB file.

    Raises:
        UserError: missing, damaged, or of another number of axes.
    """
    try:
        array = scipy.io.loadmat(str(path), appendmat=False, variable_names=[key])[key]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except KeyError:
        raise UserError(f"{path}: holds no {key}") from None
    except Exception as error:  # damaged bytes make the reader raise any exception
        raise UserError(
            f"{path}: damaged or no MATLAB file ({str(error).splitlines()[0][:120]})"
        ) from None
    if array.ndim != ndim:
        raise UserError(f"{path}: {key} has shape {array.shape}, {ndim} axes are expected")
    return array


def fill_contour(points, shape):
    """The pixels of a slice `shape` (H, W) with their centres within a contour of points (x, y),
    counted from 1.
    """
    corners = points - 1
    x, y = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    inside = Polygon(corners).contains_points(np.column_stack([x.ravel(), y.ravel()]))
    return inside.reshape(shape).astype(np.uint8)


def read(files):
    """A subject's images and labels, both (slices, H, W).

    Raises:
        UserError: a file that is missing, damaged, or not as the data set's description says.
    """
    images = load(files[0], "sol_yxzt", 4)
    drawn = load(files[1], "manual_seg_32points", 2)
    if images.dtype.kind not in "iuf" or not images.size or not np.isfinite(images).all():
        raise UserError(f"{files[0]}: sol_yxzt holds no finite grey values")
    if drawn.shape != images.shape[2:]:
        raise UserError(
            f"{files[1]}: contours of {drawn.shape} levels and times, the images have "
            f"{images.shape[2:]}"
        )
    height, width = images.shape[:2]
    labels = np.zeros((*drawn.shape, height, width), np.uint8)
    for place in np.ndindex(drawn.shape):
        points = np.asarray(drawn[place])
        if points.size == 1 and points.flat[0] == -99999:
            continue
        where = f"{files[1]}: the contour of level {place[0] + 1}, time {place[1] + 1}"
        numbers = points.dtype.kind in "iuf" and np.isfinite(points).all()
        if not numbers or points.shape != (65, 2):
            raise UserError(f"{where} is none of 65 points")
        if points[:32].min() < 0 or (points[:32].max(axis=0) > (width + 1, height + 1)).any():
            raise UserError(f"{where} lies outside of the image")
        labels[place] = fill_contour(points[:32], (height, width))
    slices = images.transpose(2, 3, 0, 1).reshape(-1, height, width)
    return slices, labels.reshape(-1, height, width)


def prepare(job):
    """Write a subject, and return its row of the report."""
    subject, split, files, path = job
    report = Report(Endocardium.class_names)
    with report.case(subject, split) as row:
        if files is None:
            raise UserError("listed, but not in the download")
        image, label = (SimpleITK.GetImageFromArray(array) for array in read(files))
        row.look(image, label, files[0])
        row.values |= {"spacing": "unknown", "axes": "", "oblique": "", "endocardium ml": ""}
        prepared = preprocess(Endocardium.preprocessing, image, label)
        stack = prepared.image.transpose(2, 1, 0)
        target = prepared.label.transpose(2, 1, 0)
        write_case(path, stack, target, source=files[0], sha256=row.sha256)
        row.show(prepared.image, prepared.label, (1, 1, 1))
    return row


def main(argv=None):
    args = parse(argv)
    subjects = find(args.download)
    lists = choose(subjects, args)
    paths = {name: [f"data/{name}.h5"] for listed in lists.values() for name in listed}
    recipe = {
        "script": "prepare_endocardium.py",
        "lists": lists,
        "sources": {name: stamp(subjects.get(name, ())) for name in paths},
        "preprocessing": Endocardium.preprocessing.as_dict(),
        "unlike_published": [] if args.lists else [f"lists drawn from seed {args.seed}"],
    }
    jobs = []
    for split in ("test", "train"):
        for name in lists[split]:
            jobs.append((name, split, subjects.get(name), args.root / paths[name][0]))
    lines = {}
    for split, listed in lists.items():
        lines[f"{split}.list"] = {name: name for name in listed}
    names = Endocardium.class_names
    problems = prepare_all(
        prepare, jobs, paths, lines, args.root, recipe, names, args.workers, args.overwrite
    )
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    command.run(main)
