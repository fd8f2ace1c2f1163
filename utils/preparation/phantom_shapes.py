"""Shapes of the phantom as signed distances in mm, negative inside, float32.

x grows to the patient's left, y to the back, z to the head.
"""

from collections.abc import Sequence

import numpy as np

from dataloaders.phantom import FIELD_OF_VIEW

FAR = 1e3  # the distance in mm that stands for every larger one


class Space:
    """The voxels' centres in mm, bent by a smooth deformation, since no organ is an ellipsoid.

    Attributes:
        size: voxels (X, Y, Z).
        spacing: mm (3,).
        axes: the centres along each axis, before the deformation.
        bend: the largest displacement along an axis in mm.
        points: x, y and z of every voxel, each (X, Y, Z).
    """

    def __init__(self, size: Sequence[int], rng: np.random.Generator):
        self.size = tuple(size)
        self.spacing = FIELD_OF_VIEW / size
        self.axes = [
            (((np.arange(n) + 0.5) / n - 0.5) * extent).astype(np.float32)
            for n, extent in zip(size, FIELD_OF_VIEW, strict=True)
        ]
        self.bend = 2.5
        self.points = []
        for straight in np.meshgrid(*self.axes, indexing="ij"):
            shift = np.clip(self.field(rng, 45) * np.float32(1.2), -self.bend, self.bend)
            self.points.append(straight + shift)

    def field(self, rng: np.random.Generator, wavelength: float, waves: int = 16) -> np.ndarray:
        """A random field (X, Y, Z) of about unit variance: a sum of plane waves at least
        `wavelength` mm long.
        """
        total = np.zeros(self.size, np.float32)
        for _ in range(waves):
            frequency = 2 * np.pi / (wavelength * rng.uniform(1, 2)) * unit(rng.standard_normal(3))
            phases = [k * axis for k, axis in zip(frequency, self.axes, strict=True)]
            phases[0] = phases[0] + rng.uniform(0, 2 * np.pi)
            x, y, z = (np.exp(1j * phase).astype(np.complex64) for phase in phases)
            xy = (x[:, None] * y)[:, :, None]
            total += xy.real * z.real - xy.imag * z.imag
        return total * np.float32(np.sqrt(2 / waves))

    def ellipsoid(
        self, centre: Sequence[float], radii: Sequence[float], turn: np.ndarray | None = None
    ) -> np.ndarray:
        """`ellipsoid` at every voxel (X, Y, Z)."""
        return ellipsoid(self.points, centre, radii, turn)

    def tube(self, path: np.ndarray, radii: Sequence[float]) -> np.ndarray:
        """Distance (X, Y, Z) to a chain of tapered capsules through `path` (N, 3); `FAR` where it
        is far away.
        """
        distance = np.full(self.size, FAR, np.float32)
        for a, b, r, s in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
            reach = max(r, s) + self.bend + 8  # walls and blends look up to 8 mm away
            low, high = np.minimum(a, b) - reach, np.maximum(a, b) + reach
            near = tuple(
                slice(*np.searchsorted(axis, (first, last)))
                for axis, first, last in zip(self.axes, low, high, strict=True)
            )
            piece = distance[near]
            np.minimum(piece, capsule([p[near] for p in self.points], a, b, r, s), out=piece)
        return distance


def ellipsoid(
    points: Sequence[np.ndarray],
    centre: Sequence[float],
    radii: Sequence[float],
    turn: np.ndarray | None = None,
) -> np.ndarray:
    """Distance to an ellipsoid, exact to first order near the surface; its axes are the rows of
    `turn`.
    """
    offset = [p - np.float32(c) for p, c in zip(points, centre, strict=True)]
    if turn is not None:
        offset = [_dot(row, offset) for row in turn]
    scaled = [o / np.float32(r) for o, r in zip(offset, radii, strict=True)]
    k = np.sqrt(sum(s * s for s in scaled))
    gradient = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return k * (k - 1) / np.maximum(gradient, 1e-6)


def capsule(
    points: Sequence[np.ndarray], a: Sequence[float], b: Sequence[float], r: float, s: float
) -> np.ndarray:
    """Distance to the segment from `a` (radius r) to `b` (radius s)."""
    axis = np.asarray(b, float) - a
    offset = [p - np.float32(c) for p, c in zip(points, a, strict=True)]
    t = sum(o * np.float32(w / (axis @ axis)) for o, w in zip(offset, axis, strict=True)).clip(0, 1)
    squared = sum((o - t * np.float32(w)) ** 2 for o, w in zip(offset, axis, strict=True))
    return np.sqrt(squared) - (np.float32(r) + t * np.float32(s - r))


def union(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    """The union of two shapes, its crease filled over `k` mm."""
    if not k:
        return np.minimum(a, b)
    k = np.float32(k)
    return np.minimum(a, b) - np.maximum(k - np.abs(a - b), 0) ** 2 / (4 * k)


def cut(a: np.ndarray, b: np.ndarray, k: float = 0.0) -> np.ndarray:
    """The intersection of two shapes, its edge rounded over `k` mm."""
    return -union(-a, -b, k)


def plane(
    points: Sequence[np.ndarray], origin: Sequence[float], normal: Sequence[float]
) -> np.ndarray:
    """Distance to the half space behind the plane through `origin`, negative against the
    `normal`.
    """
    return _dot(normal, [p - np.float32(c) for p, c in zip(points, origin, strict=True)])


def unit(vector: Sequence[float]) -> np.ndarray:
    """The vector at length 1."""
    return np.asarray(vector, float) / np.linalg.norm(vector)


def curve(
    start: Sequence[float], middle: Sequence[float], end: Sequence[float], n: int = 7
) -> np.ndarray:
    """`n` points (n, 3) on the quadratic Bézier curve."""
    t = np.linspace(0, 1, n)[:, None]
    from_start = (1 - t) ** 2 * np.asarray(start)
    through_middle = 2 * t * (1 - t) * np.asarray(middle)
    return from_start + through_middle + t**2 * np.asarray(end)


def rotation(rng: np.random.Generator, degrees: Sequence[float]) -> np.ndarray:
    """A rotation matrix from three normal angles with standard deviations `degrees` about x, y and
    z.
    """
    angles = np.deg2rad(rng.normal(0, degrees).clip(-30, 30))
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _dot(weights: Sequence[float], arrays: Sequence[np.ndarray]) -> np.ndarray:
    return sum(np.float32(w) * array for w, array in zip(weights, arrays, strict=True))
