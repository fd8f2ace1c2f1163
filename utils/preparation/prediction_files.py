"""The inputs of a prediction, and the files that are made of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.preparation.images import SUFFIXES, find_images, stem, suffix

READ = (*SUFFIXES, ".h5")


@dataclass(frozen=True)
class Job:
    """An input and its outputs.

    Attributes:
        path: of the input, a file or a DICOM series' folder.
        stem: of the outputs' names, with their folder.
        suffix: type of the outputs.
        maps: names of the maps that are written beside the labels.
    """

    path: Path
    stem: Path
    suffix: str
    maps: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether all outputs are there."""
        return all(output.exists() for output in self.outputs.values())

    @property
    def outputs(self) -> dict[str, Path]:
        """`labels` and the name of each map to its file; an .h5 file holds them all."""
        name = self.stem.name
        if self.suffix == ".h5":
            return {"labels": self.stem.with_name(f"{name}.h5")}
        outputs = {"labels": self.stem.with_name(f"{name}{self.suffix}")}
        for kind in self.maps:
            outputs[kind] = self.stem.with_name(f"{name}_{kind}{self.suffix}")
        return outputs


def find_jobs(inputs: Sequence[Path], out: Path, maps: Sequence[str]) -> list[Job]:
    """A job for each image, in the order of the inputs.

    Args:
        inputs: files and folders.
        out: folder of the outputs; files in it are no inputs where it lies in an input's folder.
        maps: names of the maps to write.

    Raises:
        UserError: a folder without images, two inputs of one name, or an output where an input
            lies.
    """
    found = _find(inputs, out)
    jobs = []
    taken = {}
    for path, output_stem in found.values():
        kind = suffix(path).lower()
        job = Job(path, output_stem, kind if kind in READ else ".nii.gz", tuple(maps))
        for output in job.outputs.values():
            if output.resolve() in found:
                raise UserError(f"--out {out}: {output} is an input; name another folder")
            if output in taken:
                raise UserError(
                    f"{taken[output]} and {path} would both be written to {output}: name a folder "
                    "above both, because its sub-folders are kept, or call the script twice"
                )
            taken[output] = path
        jobs.append(job)
    return jobs


def unfinished(jobs: Sequence[Job], resume: bool, overwrite: bool) -> list[Job]:
    """The jobs to do: with `resume` those that lack an output, else all.

    Raises:
        UserError: an output is there already, without `resume` or `overwrite`.
    """
    there = [output for job in jobs for output in job.outputs.values() if output.exists()]
    if there and not resume and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise UserError(
            f"{there[0]}{more}: there already; --resume keeps them, --overwrite replaces them"
        )
    if not resume:
        return list(jobs)
    return [job for job in jobs if not job.is_done]


def _find(inputs: Sequence[Path], out: Path) -> dict[Path, tuple[Path, Path]]:
    """Each image's resolved path to its path and the stem of its outputs."""
    found = {}
    for given in inputs:
        out_is_below = given.resolve() in out.resolve().parents
        for path in find_images(given, READ):
            if out_is_below and out.resolve() in path.resolve().parents:
                continue  # an earlier call wrote it
            below = path.relative_to(given).parent if path != given else Path()
            found.setdefault(path.resolve(), (path, out / below / stem(path)))
    if not found:
        raise UserError(f"{inputs[0]}: no image except those in --out")
    return found
