"""Where the voxels of an image lie in the patient, and an array moved from one grid to another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK

from utils.preparation.images import to_array

# part of a voxel's size; a smaller difference is rounding of a header and needs no resampling
SAME_SPACING = 1e-3


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        size: in voxels.
        spacing: in mm.
        origin: place of the first voxel's centre, in mm.
        direction: nine numbers, as SimpleITK gives them.
    """

    size: tuple
    spacing: tuple
    origin: tuple
    direction: tuple

    @classmethod
    def of(cls, image: SimpleITK.Image) -> "Grid":
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def axes(self) -> np.ndarray:
        """The direction as a matrix (3, 3): each column is where an axis points to."""
        return np.reshape(self.direction, (3, 3))

    @property
    def orientation(self) -> str:
        """Where the axes point to, at least nearly: LPS where x grows to the left, y to the back,
        z to the head.
        """
        return SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction)

    def image(self, array: np.ndarray) -> SimpleITK.Image:
        """An array `(X, Y, Z)` as a SimpleITK image on this grid."""
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def point(self, index: Sequence[float]) -> tuple:
        """The place in mm of a voxel; the index need not be whole."""
        return tuple(np.add(self.origin, self.axes @ np.multiply(index, self.spacing)).tolist())

    def oriented(self, orientation: str) -> tuple[tuple, tuple, "Grid"]:
        """How to make the axes point nearly to these directions.

        Returns:
            The order of the axes, those to reverse after that, and the grid after both.
        """
        probe = SimpleITK.Image(1, 1, 1, SimpleITK.sitkUInt8)
        probe.SetDirection(self.direction)
        turn = SimpleITK.DICOMOrientImageFilter()
        turn.SetDesiredCoordinateOrientation(orientation)
        turn.Execute(probe)
        order = tuple(turn.GetPermuteOrder())
        flips = tuple(np.flatnonzero(turn.GetFlipAxes()).tolist())
        first = [0, 0, 0]  # the index, on this grid, of the other's first voxel
        signs = [1, 1, 1]
        for axis in flips:
            first[order[axis]] = self.size[order[axis]] - 1
            signs[axis] = -1
        size = tuple(self.size[axis] for axis in order)
        spacing = tuple(self.spacing[axis] for axis in order)
        direction = tuple((self.axes[:, order] * signs).ravel().tolist())
        return order, flips, Grid(size, spacing, self.point(first), direction)

    def respaced(self, spacing: Sequence[float]) -> "Grid":
        """The grid of this `spacing` about the same centre, over the same extents as nearly as
        whole voxels can.
        """
        size = []
        exact = []
        first = []
        for extent, old, new in zip(self.size, self.spacing, spacing, strict=True):
            if abs(new - old) <= SAME_SPACING * old:
                new = old
            count = max(1, math.floor(extent * old / new + 0.5))
            size.append(count)
            exact.append(new)
            # the index, on this grid, of the centre of the other's first voxel
            first.append((extent - 1) / 2 - (count - 1) / 2 * new / old)
        return Grid(tuple(size), tuple(exact), self.point(first), self.direction)

    def cropped(self, box: Sequence[slice]) -> "Grid":
        """The grid of a box of slices."""
        size = tuple(part.stop - part.start for part in box)
        origin = self.point([part.start for part in box])
        return Grid(size, self.spacing, origin, self.direction)


def resample(array: np.ndarray, source: Grid, target: Grid, interpolator: int) -> np.ndarray:
    """An array on the grid `source`, resampled to the grid `target`.

    A voxel just outside of `source` takes the value at its edge. Where both grids are equal the
    array itself comes back.

    Args:
        interpolator: of SimpleITK, such as `SimpleITK.sitkLinear`.
    """
    if source == target:
        return array
    take = SimpleITK.ResampleImageFilter()
    take.SetSize(target.size)
    take.SetOutputSpacing(target.spacing)
    take.SetOutputOrigin(target.origin)
    take.SetOutputDirection(target.direction)
    take.SetInterpolator(interpolator)
    take.UseNearestNeighborExtrapolatorOn()
    return to_array(take.Execute(source.image(array)))


def resample_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Labels on the grid `source`, resampled to the grid `target`.

    Each class's share of a voxel is interpolated linearly, and the largest share wins; of equal
    ones the lower class.
    """
    if source == target:
        return labels
    best = most = None
    for c in np.unique(labels):
        mask = (labels == c).astype(np.float32)
        share = resample(mask, source, target, SimpleITK.sitkLinear)
        if best is None:
            best = np.full(share.shape, c, np.uint8)
            most = share
        else:
            np.putmask(best, share > most, c)
            most = np.maximum(most, share)
    return best
