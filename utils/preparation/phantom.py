"""The phantom's folder: its cases in the layout of the LA data set, made several at a time."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from dataloaders.h5 import h5_bytes
from dataloaders.la import FOLDER
from dataloaders.phantom import SETTINGS, SIZE, read_settings
from utils.errors import UserError
from utils.files import write_atomically
from utils.preparation.folder import writing
from utils.preparation.phantom_imaging import make_case

FILE = "mri_norm2.h5"
GENERATOR = 1  # raise it when the same seed no longer gives the same bits
MIN_SIZE = (32, 32, 20)  # coarser than 4 mm, a vein is thinner than a voxel
ADVICE = "; choose another folder with --root"


def write_dataset(
    root: str | Path,
    seed: int = 2018,
    size: Sequence[int] = SIZE,
    train: int = 80,
    test: int = 20,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[..., Iterable] | None = None,
) -> int:
    """Write a phantom in LA's layout, and its settings in `<root>/phantom.json`.

    A case that is there already is kept, so a second call does nothing, and a call after an
    interruption writes what is missing. The files do not depend on `workers`.

    Args:
        root: folder to write; it is made where there is none.
        seed: non-negative integer.
        size: voxels (X, Y, Z) of every case.
        train, test: number of cases of `train.list` and `test.list`.
        workers: processes, all the cores by default. More than 1 spawns interpreters, so the
            calling script needs the guard `if __name__ == "__main__"`.
        overwrite: delete the phantom in `root`, with any settings, and make this one.
        progress: wraps the iterable of the cases being made, e.g. `tqdm`; called with it and
            `total=`.

    Returns:
        Number of cases written: 0 where the phantom was whole.

    Raises:
        UserError: an option is out of range; `root` holds another phantom, or data that is no
            phantom, or may not be written.
    """
    root = Path(root)
    size = tuple(size)
    _check_options(seed, size, train, test, workers)
    settings = {
        "generator": GENERATOR,
        "seed": seed,
        "size": list(size),
        "train": train,
        "test": test,
    }
    _make_room(root, settings, overwrite)
    names = [f"PHANTOM{index + 1:04d}" for index in range(train + test)]
    with writing(ADVICE):
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
    _write_text(root / SETTINGS, json.dumps(settings) + "\n")
    missing = [
        index for index, name in enumerate(names) if not (root / FOLDER / name / FILE).is_file()
    ]
    _write_cases(partial(_write_case, root / FOLDER, names, seed, size), missing, workers, progress)
    for split, cases in (("train", names[:train]), ("test", names[train:])):
        _write_text(root / f"{split}.list", "\n".join(cases) + "\n")
    return len(missing)


def _check_options(
    seed: int, size: Sequence[int], train: int, test: int, workers: int | None
) -> None:
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    if len(size) != 3 or any(n < least for n, least in zip(size, MIN_SIZE, strict=True)):
        raise UserError(
            f"--size {' '.join(map(str, size))}: must be three numbers, {MIN_SIZE} voxels or more"
        )
    if train < 1 or test < 1:
        raise UserError(f"--train {train} --test {test}: each list needs at least one case")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: must be 1 or more")


def _make_room(root: Path, settings: dict, overwrite: bool) -> None:
    """See that `root` holds no other data, and with `overwrite` remove the phantom in it."""
    lists = [root / "train.list", root / "test.list"]
    found = read_settings(root)
    if found is None:
        strangers = [path for path in (root / FOLDER, *lists) if path.exists()]
        if strangers:
            raise UserError(
                f"{strangers[0]} exists and is no phantom's; choose another folder with --root"
            )
    elif overwrite:
        with writing(ADVICE):
            for path in [*lists, *(root / FOLDER).glob(f"PHANTOM*/{FILE}")]:
                path.unlink(missing_ok=True)
            for folder in (root / FOLDER).glob("PHANTOM*"):
                if not any(folder.iterdir()):
                    folder.rmdir()
    elif found != settings:
        other = ", ".join(
            f"{key} {found[key]}" for key, value in settings.items() if found[key] != value
        )
        raise UserError(
            f"{root} holds another phantom ({other}); choose another --root, or re-make it: "
            "--overwrite"
        )


def _write_cases(
    write: Callable[[int], None],
    missing: Sequence[int],
    workers: int | None,
    progress: Callable[..., Iterable] | None,
) -> None:
    wrap = partial(progress, total=len(missing)) if progress else iter
    workers = min(workers or _cores(), len(missing))
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for _ in wrap(pool.map(write, missing)):
                pass
    else:
        for _ in wrap(map(write, missing)):
            pass


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_case(
    folder: Path, names: Sequence[str], seed: int, size: Sequence[int], index: int
) -> None:
    image, label = make_case(seed, index, size)
    content = h5_bytes({"image": image, "label": label})
    path = folder / names[index] / FILE
    with writing(ADVICE):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda part: part.write_bytes(content))


def _write_text(path: Path, text: str) -> None:
    """Write a file unless it holds this text already, so that a second call keeps its time."""
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, lambda part: part.write_text(text))
