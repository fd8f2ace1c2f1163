"""How the images of a data set are prepared: axes, spacing, crop, grey values.

    how = Preprocessing(orientation="LPS", spacing=(1, 1, 1), crop="nonzero", intensity="zscore")

Only the facts stand here, which data sets and checkpoints carry; `utils.preparation.preprocess`
applies them to an image.
"""

import math
from dataclasses import asdict, dataclass, fields
from types import NoneType

from utils.errors import UserError

MARKER = "preparation.json"  # the file in a data set's folder that says how it was prepared
CROPS = ("none", "nonzero", "label")
INTENSITIES = ("none", "zscore", "zscore_nonzero", "window", "minmax", "percentile")
STATISTICS = ("whole", "crop")


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared. All of it can be written as JSON (`as_dict`, `from_dict`).

    Attributes:
        orientation: axes are permuted and reversed to point nearly to these directions: `LPS` is
            left, back, head; None leaves them as stored.
        spacing: mm along the axes after that. Images are interpolated linearly, labels too, class
            by class. None leaves the spacing.
        crop: `none`; `nonzero`, to the box of the voxels that are not 0; `label`, to the label's
            box (an image without a label is taken whole, as at prediction).
        margin: voxels on either side of the box, along each axis, after resampling.
        at_least: least extents of the crop in voxels, as far as the image has them.
        intensity: `none`; `zscore`: mean 0 and standard deviation 1; `zscore_nonzero`: the same of
            the voxels that are not 0, which stay 0; `window`: from [`low`, `high`], in the image's
            units, to [0, 1]; `minmax`: to [0, 1]; `percentile`: clipped to the percentiles 0.5 and
            99.5, then as `zscore`.
        low, high: of `window`.
        statistics: mean, extremes and percentiles are of the `whole` image or of the `crop`.
        exactly: extents of the crop in voxels, about the middle of the box, as far as the image has
            them; None along an axis leaves the box's. An object that is larger is cut.

    Raises:
        UserError: one of them is out of its range.
    """

    orientation: str | None = None
    spacing: tuple | None = None
    crop: str = "none"
    margin: tuple = (0, 0, 0)
    at_least: tuple = (1, 1, 1)
    intensity: str = "zscore"
    low: float | None = None
    high: float | None = None
    statistics: str = "whole"
    exactly: tuple = (None, None, None)

    def __post_init__(self):
        _check_choice("crop", self.crop, CROPS)
        _check_choice("intensity", self.intensity, INTENSITIES)
        _check_choice("statistics", self.statistics, STATISTICS)
        if self.orientation is not None and not _names_three_axes(self.orientation):
            raise UserError(
                f"preprocessing: orientation {self.orientation} is not one each of L/R, A/P and I/S"
            )
        if self.spacing is not None:
            _check_three("spacing", self.spacing, (int, float), 1e-6)
        _check_three("margin", self.margin, int, 0)
        _check_three("at_least", self.at_least, int, 1)
        _check_three("exactly", self.exactly, (int, NoneType), 1)
        self._check_window()

    def _check_window(self) -> None:
        if self.intensity != "window":
            if self.low is not None or self.high is not None:
                raise UserError(
                    f"preprocessing: low and high belong to intensity window, not {self.intensity}"
                )
            return
        if not _is_number(self.low) or not _is_number(self.high) or not self.low < self.high:
            raise UserError(
                f"preprocessing: intensity window from {self.low} to {self.high}: low < high is "
                "expected"
            )

    def as_dict(self) -> dict:
        """A table of numbers, words and lists."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """Read the table that `as_dict` gave.

        Raises:
            UserError: it is no such table, or a value is out of its range.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            raise UserError(
                f"preprocessing: a table of {', '.join(sorted(known))} is expected, got {values}"
            )
        tuples = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**tuples)


def _check_choice(name: str, value: str, choices: tuple) -> None:
    if value not in choices:
        raise UserError(f"preprocessing: {name} {value} is none of {', '.join(choices)}")


def _check_three(name: str, values: tuple, kinds: type | tuple, least: float) -> None:
    right = isinstance(values, tuple) and len(values) == 3
    right = right and all(isinstance(value, kinds) for value in values)
    if not right or not all(value is None or least <= value < math.inf for value in values):
        raise UserError(
            f"preprocessing: {name} {values}: three numbers of at least {least:g} are expected"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _names_three_axes(axes: object) -> bool:
    if not isinstance(axes, str):
        return False
    return sorted(axes.translate(str.maketrans("RPI", "LAS"))) == ["A", "L", "S"]
