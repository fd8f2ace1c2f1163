"""A folder that one script fills, once and whole.

    if begin(root, recipe, files, overwrite): ...       the same recipe has filled it already
    report = Report(class_names)
    for ...:
        with report.case(name, split) as row:           a UserError in here leaves out this case
            row.look(image, label, source=path)         hash, geometry, volumes, everything odd
            row.prepare(how, image, label, file, path)  the h5 file, and a picture for the report
    write_list(root / "train.list", [case for case in train if case in report.good])
    problems = report.finish(root)                      report.csv, overlays.png, a printed table
    complete(root, problems)

`official.prepare_all` does all of this, several cases at a time, where the cases are known before
any is read. A file that cannot be written ends the script.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dataloaders.preprocessing import MARKER
from utils.errors import UserError
from utils.files import write_atomically

RESULTS = ("report.csv", "overlays.png")  # the report's files


class CannotWriteError(UserError):
    """An error that all other cases would meet too: a full disk, a folder that may not be
    written.
    """


def begin(
    root: str | Path, recipe: Mapping, files: Sequence[str], overwrite: bool = False
) -> dict | None:
    """Make a folder ready to be filled, unless it is whole already.

    Args:
        root: the folder; made where it is not there.
        recipe: everything that the files depend on, in JSON's types: script, options, sources.
        files: those to be written, relative to `root`; `RESULTS` are added.
        overwrite: remove the files of another recipe, and no others.

    Returns:
        The note of `complete` where this recipe has filled the folder and its files are still
        there, else None.

    Raises:
        UserError: the folder holds files of another recipe, or of none; a file of this one is gone;
            or the folder may not be written.
    """
    root = Path(root)
    recipe = json.loads(json.dumps(recipe))
    marker = root / MARKER
    found = read_json(marker) if marker.is_file() else None
    if found is not None and not {"recipe", "files", "complete"} <= found.keys():
        raise UserError(
            f"{marker}: none of these scripts wrote it; choose another folder with --root"
        )
    if found is None:
        strangers = sorted(root.iterdir()) if root.is_dir() else []
        if strangers:
            raise UserError(f"{strangers[0]} was there before; choose an empty folder with --root")
    elif found["complete"] and found["recipe"] != recipe and not overwrite:
        before = found["recipe"]
        differ = [key for key in {**before, **recipe} if before.get(key) != recipe.get(key)]
        raise UserError(
            f"{root} holds another preparation (it differs in {', '.join(differ)}); choose another "
            "--root, or replace it: --overwrite"
        )
    elif not overwrite and found["complete"]:
        gone = [file for file in found["kept"] if not (root / file).is_file()]
        if gone:
            raise UserError(
                f"{root / gone[0]}: gone since it was prepared; --overwrite prepares {root} anew"
            )
        return found
    else:
        for file in (*found["files"], *RESULTS):
            with writing():
                (root / file).unlink(missing_ok=True)
    with writing():
        for folder in {(root / file).parent for file in files} | {root}:
            folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"recipe": recipe, "files": list(files), "complete": False})
    return None


def complete(root: str | Path, problems: Sequence[str]) -> None:
    """Note that the folder is whole, and which cases were left out."""
    marker = Path(root) / MARKER
    found = read_json(marker)
    kept = [file for file in found["files"] if (Path(root) / file).is_file()]
    write_json(marker, found | {"complete": True, "kept": kept, "problems": list(problems)})


def read_json(path: str | Path) -> dict:
    """A JSON file that holds a table.

    Raises:
        UserError: missing, damaged, or something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON table is expected")
    return found


def write_json(path: str | Path, values: Mapping | Sequence) -> None:
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    with writing():
        write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def copy_file(source: str | Path, path: str | Path) -> None:
    with writing():
        write_atomically(path, lambda part: shutil.copyfile(source, part))


def write_list(path: str | Path, names: Sequence[str]) -> None:
    """Case names, one a line."""
    write_text(path, "".join(f"{name}\n" for name in names))


@contextlib.contextmanager
def writing(advice: str = "") -> Iterator[None]:
    """Turn an error of the file system into one line that ends the script, `advice` at its end."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror}){advice}"
        raise CannotWriteError(f"{error.filename}: {reason}") from None
    except UserError as error:
        raise CannotWriteError(str(error)) from None
