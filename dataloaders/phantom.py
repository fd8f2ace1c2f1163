"""A procedural left atrium in the layout of the LA data set, made from a seed in seconds.

Each case is a late-gadolinium-like volume of the chest: the left atrium with its appendage and
three to six pulmonary veins (the label), and around it what makes the real task hard, namely
chambers and vessels as bright as the atrium behind thin walls, an open mitral valve, veins that run
on past where the annotation ends, enhancing wall, a coil's bias field and Rician noise.

The anatomy is written in millimetres and drawn through signed distances (negative inside): x grows
to the patient's left, y to the back, z to the head. `size` only sets how finely the field of view
is sampled, so a case shows the same heart at every size.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType

import numpy as np
from scipy import ndimage

from dataloaders.h5 import h5_bytes
from dataloaders.la import FOLDER, LA
from dataloaders.slices import Slices
from utils.errors import UserError
from utils.files import write_atomically

FILE = "mri_norm2.h5"
GENERATOR = 1  # raise it when the same seed no longer gives the same bits
SIZE = (64, 64, 40)
MIN_SIZE = (32, 32, 20)  # coarser than 4 mm, a vein is thinner than a voxel
FIELD_OF_VIEW = np.array([128.0, 128.0, 80.0])  # mm
MARGIN = 8.0  # mm from the border to the annotated atrium, before its pieces are blended and bent

# Pulmonary veins, in mm about the middle of the atrium: where each leaves the body, which way, and
# its radius.
VEINS = {
    "right superior": ((-20, 2, 11), (-0.80, 0.10, 0.50), 8.0),
    "right inferior": ((-20, 6, -9), (-0.78, 0.58, -0.20), 7.5),
    "left superior": ((20, 4, 13), (0.62, 0.42, 0.60), 7.5),
    "left inferior": ((20, 7, -3), (0.62, 0.75, -0.15), 7.0),
    "left common": ((20, 6, 6), (0.66, 0.62, 0.25), 10.0),
    "right middle": ((-24, 3, 1), (-0.96, 0.25, 0.10), 5.0),
    "right top": ((-12, 4, 17), (-0.50, 0.40, 0.76), 5.0),
}
USUAL = ("right superior", "right inferior", "left superior", "left inferior")
VEIN_PATTERNS = (
    ("right superior", "right inferior", "left common"),
    USUAL,
    (*USUAL, "right middle"),
    (*USUAL, "right middle", "right top"),
)


# ------------------------------------------------------------------ geometry: signed distances in mm, float32


class Grid:
    """The voxels' centres in mm, bent by a smooth deformation, since no organ is an ellipsoid."""

    def __init__(self, size, rng):
        self.size = tuple(size)
        self.spacing = FIELD_OF_VIEW / size
        self.axes = [
            (((np.arange(n) + 0.5) / n - 0.5) * extent).astype(np.float32)
            for n, extent in zip(size, FIELD_OF_VIEW, strict=True)
        ]
        self.bend = 2.5  # mm, the largest displacement along an axis
        self.points = [
            p + np.clip(self.field(rng, 45) * np.float32(1.2), -self.bend, self.bend)
            for p in np.meshgrid(*self.axes, indexing="ij")
        ]

    def field(self, rng, wavelength, waves=16):
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

    def ellipsoid(self, centre, radii, rotation=None):
        """:func:`ellipsoid` at every voxel (X, Y, Z)."""
        return ellipsoid(self.points, centre, radii, rotation)

    def tube(self, path, radii):
        """Distance (X, Y, Z) to a chain of tapered capsules through `path` (N, 3); far from it only
        a large number.
        """
        distance = np.full(self.size, 1e3, np.float32)
        for a, b, r, s in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
            reach = max(r, s) + self.bend + 8  # walls and blends look up to 8 mm away
            near = tuple(
                slice(*np.searchsorted(axis, (low - reach, high + reach)))
                for axis, low, high in zip(
                    self.axes, np.minimum(a, b), np.maximum(a, b), strict=True
                )
            )
            piece = distance[near]
            np.minimum(piece, capsule([p[near] for p in self.points], a, b, r, s), out=piece)
        return distance


def ellipsoid(points, centre, radii, rotation=None):
    """Distance to an ellipsoid whose axes are the rows of `rotation`: right to first order near the
    surface.
    """
    offset = [p - np.float32(c) for p, c in zip(points, centre, strict=True)]
    if rotation is not None:
        offset = [
            sum(np.float32(w) * o for w, o in zip(row, offset, strict=True)) for row in rotation
        ]
    scaled = [o / np.float32(r) for o, r in zip(offset, radii, strict=True)]
    k = np.sqrt(sum(s * s for s in scaled))
    gradient = np.sqrt(sum((s / np.float32(r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    return k * (k - 1) / np.maximum(gradient, 1e-6)


def capsule(points, a, b, r, s):
    """Distance to the segment from `a` (radius r) to `b` (radius s)."""
    axis = np.asarray(b, float) - a
    offset = [p - np.float32(c) for p, c in zip(points, a, strict=True)]
    t = sum(o * np.float32(w / (axis @ axis)) for o, w in zip(offset, axis, strict=True)).clip(0, 1)
    squared = sum((o - t * np.float32(w)) ** 2 for o, w in zip(offset, axis, strict=True))
    return np.sqrt(squared) - (np.float32(r) + t * np.float32(s - r))


def union(a, b, k=0.0):
    """The union of two shapes, its crease filled over `k` mm."""
    if not k:
        return np.minimum(a, b)
    k = np.float32(k)
    return np.minimum(a, b) - np.maximum(k - np.abs(a - b), 0) ** 2 / (4 * k)


def cut(a, b, k=0.0):
    """The intersection of two shapes, its edge rounded over `k` mm."""
    return -union(-a, -b, k)


def plane(points, origin, normal):
    """Distance to the half space behind the plane through `origin`, negative against the
    `normal`.
    """
    return sum(
        (p - np.float32(c)) * np.float32(n) for p, c, n in zip(points, origin, normal, strict=True)
    )


def unit(vector):
    return np.asarray(vector, float) / np.linalg.norm(vector)


def curve(start, middle, end, n=7):
    """`n` points (n, 3) on the quadratic Bézier curve."""
    t = np.linspace(0, 1, n)[:, None]
    return (
        (1 - t) ** 2 * np.asarray(start)
        + 2 * t * (1 - t) * np.asarray(middle)
        + t**2 * np.asarray(end)
    )


def rotation(rng, degrees):
    """A rotation matrix from three normal angles with standard deviations `degrees` about x, y and
    z.
    """
    angles = np.deg2rad(rng.normal(0, degrees).clip(-30, 30))
    (a, b, c), (p, q, r) = np.cos(angles), np.sin(angles)
    return (
        np.array([[c, -r, 0], [r, c, 0], [0, 0, 1]])
        @ np.array([[b, 0, q], [0, 1, 0], [-q, 0, b]])
        @ np.array([[1, 0, 0], [0, a, -p], [0, p, a]])
    )


# ------------------------------------------------------------------ anatomy


class Atrium:
    """One left atrium: its parameters drawn from `rng`, its shapes drawn on any grid.

    Attributes:
        turn: (3, 3), the heart's rotation; scale, shift: mm of the volume per mm of the heart's
            frame, and its origin.
        veins: list of (path (N, 3), radii (N,), number of annotated points), in mm of the volume.
        appendage: list of (path, radii).
    """

    def __init__(self, rng):
        self.turn = rotation(rng, (12, 12, 18))
        self.lobes = [  # centre, radii in the heart's frame
            (np.array(centre) + rng.normal(0, 2.5, 3), np.array(radii) * rng.uniform(0.77, 1.23, 3))
            for centre, radii in (
                ((0, 0, 0), (30, 20, 21)),
                ((-14, 3, -2), (18, 16, 18)),
                ((14, -3, 5), (18, 16, 17)),
            )
        ]
        self.back = rng.uniform(14, 20)  # the spine and the aorta flatten it
        self.valve = unit(np.array([0.62, -0.55, -0.56]) + rng.normal(0, 0.16, 3)) * rng.uniform(
            18, 23
        )
        veins = [
            self._vein(rng, *VEINS[name])
            for name in VEIN_PATTERNS[rng.choice(4, p=(0.2, 0.45, 0.2, 0.15))]
        ]
        appendage = self._appendage(rng)

        annotated = [(path[:n], radii[:n]) for path, radii, n in veins] + appendage
        low, high = self._extent(annotated)
        room = FIELD_OF_VIEW - 2 * MARGIN
        self.scale = min(rng.uniform(0.8, 1.25), *(room / (high - low)))
        self.shift = rng.normal(0, (9, 9, 5)).clip(
            -room / 2 - self.scale * low, room / 2 - self.scale * high
        )
        self.veins = [(self.place(path), radii * self.scale, n) for path, radii, n in veins]
        self.appendage = [(self.place(path), radii * self.scale) for path, radii in appendage]

    def place(self, points):
        """Points (..., 3) of the heart's frame in mm of the volume."""
        return np.asarray(points, float) @ self.turn.T * self.scale + self.shift

    def body(self, points):
        """Distance to the chamber, without veins and appendage, at three arrays of coordinates of
        the heart's frame.
        """
        lobes = [ellipsoid(points, centre, radii) for centre, radii in self.lobes]
        body = union(union(lobes[0], lobes[1], 8), lobes[2], 8)
        body = cut(body, plane(points, (0, self.back, 0), (0, 1, 0)), 6)
        return cut(body, plane(points, self.valve, unit(self.valve)), 2)

    def _vein(self, rng, start, direction, radius):
        start = np.array(start) + rng.normal(0, 2.5, 3)
        direction = unit(np.array(direction) + rng.normal(0, 0.2, 3))
        radius *= rng.uniform(0.75, 1.2)
        bend = unit(direction + rng.normal(0, 0.35, 3) + (0, 0.25, 0))
        path = curve(start, start + 20 * direction, start + 20 * direction + 28 * bend, 25)
        radii = radius * np.interp(np.linspace(0, 1, 25), (0, 0.4, 1), (1.15, 0.9, 0.6))
        length = np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
        ostium = length[np.argmax(self.body(path.T) > 0)]
        return path, radii, int(np.searchsorted(length, ostium + rng.uniform(9, 11)))

    def _appendage(self, rng):
        """A curved finger in front of the left superior vein, with a lobe or two at its side."""
        start = np.array((19, -9, 10)) + rng.normal(0, 2, 3)
        elbow = start + rng.uniform(13, 19) * unit(
            np.array((0.80, -0.45, 0.35)) + rng.normal(0, 0.2, 3)
        )
        tip = elbow + rng.uniform(10, 20) * unit(
            np.array((0.35, -0.70, -0.35)) + rng.normal(0, 0.4, 3)
        )
        path = curve(start, elbow, tip)
        parts = [(path, rng.uniform(6, 8.5) * np.linspace(1.1, 0.6, len(path)))]
        for _ in range(rng.integers(1, 3)):
            root = path[rng.integers(3, 6)]
            parts.append(
                (
                    np.stack([root, root + rng.uniform(5, 9) * unit(rng.normal(0, 1, 3))]),
                    np.array([5.0, 3.5]),
                )
            )
        return parts

    def _extent(self, tubes):
        """The box of lobes and tubes, turned but not yet scaled or moved: two corners (3,) in
        mm.
        """
        corners = []
        for centre, radii in self.lobes:
            half = np.sqrt(((self.turn * radii) ** 2).sum(1))
            corners += [self.turn @ centre - half, self.turn @ centre + half]
        for path, radii in tubes:
            corners += [
                *(path @ self.turn.T - radii[:, None]),
                *(path @ self.turn.T + radii[:, None]),
            ]
        return np.min(corners, 0), np.max(corners, 0)

    def draw(self, grid):
        """Distances (X, Y, Z) to the annotated atrium and to the veins beyond it."""
        moved = [p - np.float32(s) for p, s in zip(grid.points, self.shift, strict=True)]
        local = [
            sum(np.float32(w / self.scale) * m for w, m in zip(row, moved, strict=True))
            for row in self.turn.T
        ]
        lumen = self.body(local) * np.float32(self.scale)
        for path, radii in self.appendage:
            lumen = union(lumen, grid.tube(path, radii), 3)
        veins = np.full(grid.size, 1e3, np.float32)
        for path, radii, n in self.veins:
            vein = grid.tube(path[::3], radii[::3])
            veins = union(veins, vein)
            lumen = union(
                lumen,
                cut(vein, plane(grid.points, path[n - 1], unit(path[n - 1] - path[n - 4]))),
                4,
            )
        return lumen, veins


class Canvas:
    """The image in the making: shapes painted one over the other, each voxel by the share of it
    that is covered.
    """

    def __init__(self, grid, value):
        self.image = np.full(grid.size, value, np.float32)
        self.voxel = np.float32(grid.spacing.mean())

    def paint(self, distance, value, opacity=1.0):
        cover = (0.5 - distance / self.voxel).clip(0, 1) * np.float32(opacity)
        self.image += cover * (np.asarray(value, np.float32) - self.image)

    def vessel(self, distance, blood, wall, thickness=1.5):
        """A lumen inside a wall of `thickness` mm."""
        self.paint(distance - np.float32(thickness), wall)
        self.paint(distance, blood)


def paint_chest(canvas, grid, rng, tissue, atrium):
    """The lungs with their vessels, what lies between them, the liver, the chest wall with its
    ribs.
    """
    for _ in range(26):
        side = rng.choice((-1, 1))
        start = np.array([side * rng.uniform(34, 60), rng.uniform(-35, 45), rng.uniform(-40, 40)])
        end = start + rng.uniform(10, 26) * unit(rng.normal((0.6 * side, 0.3, 0), 1))
        radius = rng.uniform(0.7, 2.4)
        canvas.paint(
            grid.tube([start, end], [radius, radius / 2]), tissue["right"] * rng.uniform(0.6, 1)
        )

    heart = grid.ellipsoid(atrium.place((2, -16, -8)), np.array([54, 42, 62]) * atrium.scale)
    column = grid.ellipsoid((atrium.shift[0] * 0.5 + 4, atrium.shift[1] + 34, 0), (30, 26, 200))
    top = grid.ellipsoid(atrium.place((0, -10, 40)), (46, 44, 30))
    mediastinum = union(union(heart, column, 12), top, 12)
    canvas.paint(mediastinum - 2, tissue["muscle"])  # pericardium and pleura
    canvas.paint(mediastinum, tissue["fat"] * (1 + 0.2 * grid.field(rng, 14)))

    liver = grid.ellipsoid(
        (rng.uniform(-50, -35), rng.uniform(-25, -5), rng.uniform(-82, -66)),
        (56, 52, 40),
        rotation(rng, (5, 10, 5)),
    )
    canvas.paint(liver, tissue["liver"])

    inner = grid.ellipsoid(
        (rng.normal(0, 4), rng.normal(-2, 3), 0), (rng.uniform(76, 90), rng.uniform(55, 62), 900)
    )
    layers = tissue["muscle"] * (
        0.85 + 0.35 * np.sin(inner * np.float32(0.7) + grid.field(rng, 40))
    )
    canvas.paint(-inner, layers)
    slope, first, step = rng.uniform(0.2, 0.5), rng.uniform(-50, -25), rng.uniform(24, 30)
    for level in np.arange(first, 90, step):
        for side in (-1, 1):
            angles = np.linspace(-1.45, 1.45, 9)  # from breastbone to spine
            ring = [
                (side * 80 * np.cos(a), 60 * np.sin(a), level - slope * 40 * np.sin(a - 1))
                for a in angles
            ]
            rib = grid.tube(np.array(ring), np.full(9, 5.0))
            canvas.paint(rib, tissue["bone"])
            canvas.paint(rib + 2, tissue["marrow"])


def paint_back(canvas, grid, rng, tissue, atrium):
    """Spine, airways and gullet behind the atrium; returns where the spine stands, (x, y) in mm."""
    x, y, z = grid.points
    middle = np.float32(atrium.shift[0] * 0.5 - rng.uniform(4, 12))
    back = np.float32(atrium.shift[1] + 20 * atrium.scale + rng.uniform(22, 28))
    bodies = np.cos(
        (z - np.float32(rng.uniform(-15, 15)) - 0.1 * (y - back))
        * np.float32(2 * np.pi / rng.uniform(26, 32))
    )
    waist = 15 + 1.5 * bodies  # a vertebra is narrower at its middle than a disc
    spine = np.sqrt((x - middle) ** 2 + ((y - back) / np.float32(0.85)) ** 2) - waist
    canvas.paint(spine - 2.5, tissue["muscle"] * 1.2)
    canvas.paint(spine, tissue["bone"])
    marrow = tissue["marrow"] + (tissue["disc"] - tissue["marrow"]) * (bodies > 0.75)
    canvas.paint(spine + 2, marrow * (1 + 0.2 * grid.field(rng, 10)))
    canal = np.sqrt(((x - middle) / np.float32(1.2)) ** 2 + (y - back - 24) ** 2) - 8
    canvas.vessel(canal, tissue["lung"] * 2, tissue["muscle"] * 1.4, 2)

    carina = atrium.place((2, 16, rng.uniform(30, 38)))
    for way, radius in (((0, -2, 40), 8), ((-34, 8, -16), 6), ((34, 12, -18), 5.5)):
        bronchus = grid.tube([carina, carina + way], [radius, radius * 0.85])
        canvas.vessel(bronchus, tissue["air"], tissue["muscle"])
    course = atrium.shift[0] * 0.5 + rng.normal(5, 3), back - rng.uniform(19, 22)
    gullet = grid.tube(np.array([(*course, -60), (*course, 60)]), np.full(2, 5.5))
    canvas.paint(gullet, tissue["muscle"] * 1.4)
    canvas.paint(gullet + 3.5, tissue["muscle"] * 0.6)
    if (
        rng.random() < 0.25
    ):  # a hiatal hernia: a chamber behind the atrium that is none of the heart's
        hernia = grid.ellipsoid(
            (*course, rng.uniform(-40, -10)), rng.uniform((12, 9, 14), (22, 14, 26))
        )
        canvas.vessel(hernia, tissue["hernia"], tissue["muscle"] * 1.4, 2)
    return middle, back


def paint_neighbours(canvas, grid, rng, tissue, atrium, spine):
    """The other chambers and the great vessels: as bright as the atrium, or nearly so, and against
    its wall.
    """

    def chamber(centre, radii, tilt=(10, 10, 15)):
        centre = atrium.place(np.array(centre) + rng.normal(0, 4, 3))
        radii = np.array(radii) * atrium.scale * rng.uniform(0.8, 1.2, 3)
        return grid.ellipsoid(centre, radii, (atrium.turn @ rotation(rng, tilt)).T)

    def pipe(points, radius):
        path = atrium.place(np.array(points) + rng.normal(0, 2.5, (len(points), 3)))
        return grid.tube(path, np.full(len(points), radius * atrium.scale * rng.uniform(0.8, 1.2)))

    middle, back = spine
    wall, right, aorta = tissue["wall"], tissue["right"], tissue["aorta"]

    left_ventricle = chamber((44, -34, -30), (20, 22, 30))
    thickness = np.float32(rng.uniform(7, 11))
    canvas.paint(left_ventricle - thickness, tissue["myocardium"] * (1 + 0.1 * grid.field(rng, 20)))
    right_ventricle = chamber((2, -54, -24), (34, 17, 28))
    canvas.vessel(right_ventricle, right, tissue["myocardium"], 3)
    canvas.paint(left_ventricle, tissue["left"])

    right_atrium = union(
        chamber((-36, -30, -12), (19, 22, 26)), pipe(((-36, -12, -30), (-34, 0, -70)), 10), 6
    )
    cava = pipe(((-33, -24, -5), (-32, -22, 20), (-31, -20, 70)), 8.5)
    canvas.paint(union(right_atrium, cava) - 2, wall)
    canvas.paint(cava, tissue["cava"])
    canvas.paint(right_atrium, right)

    pulmonary = pipe(((16, -54, 0), (20, -46, 18), (14, -26, 36), (6, -12, 38)), 11)
    pulmonary = union(pulmonary, pipe(((12, -20, 37), (-14, -4, 35), (-44, 2, 30)), 8.5), 4)
    pulmonary = union(pulmonary, pipe(((14, -20, 37), (30, 4, 38), (48, 18, 36)), 8.5), 4)
    canvas.vessel(pulmonary, tissue["pulmonary"], wall)

    root = ((12, -26, -14), (2, -30, 4), (-8, -34, 24), (-6, -30, 60))
    canvas.vessel(pipe(root, 13.5), aorta, tissue["aortic wall"], 2)

    x, y, radius = middle + rng.uniform(21, 27), back - rng.uniform(4, 12), rng.uniform(9, 12.5)
    path = [(x + rng.normal(0, 2), y + rng.normal(0, 2), z) for z in (-60, -20, 20, 60)]
    canvas.vessel(grid.tube(np.array(path), np.full(4, radius)), aorta, tissue["aortic wall"], 2)


def paint_atrium(canvas, grid, rng, tissue, atrium):
    """The atrium with its enhancing wall, its veins and the open valve; returns its mask (X, Y, Z)
    of bool.
    """
    lumen, veins = atrium.draw(grid)
    scar = np.clip(2 * grid.field(rng, rng.uniform(18, 40)) - rng.uniform(0, 2.5), 0, 1)
    wall = tissue["wall"] + (tissue["scar"] - tissue["wall"]) * scar
    blood = tissue["left"] * (1 + 0.05 * grid.field(rng, 10))
    canvas.vessel(union(lumen, veins), blood, wall, rng.uniform(1.2, 2.4))

    # Through the open valve atrium and ventricle are one pool, with no more than leaflets between
    # them.
    valve = atrium.place([atrium.valve * 0.8, atrium.valve * 1.25, (42, -34, -28)])
    inflow = grid.tube(valve, np.array([12, 12, 10]) * atrium.scale)
    canvas.paint(cut(inflow, -lumen), blood, opacity=rng.uniform(0.6, 1))
    pieces, _ = ndimage.label(lumen < 0)  # a tip thinner than a voxel can break off
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])


# ------------------------------------------------------------------ acquisition


def draw_tissue(rng):
    """Signal of each tissue, about 1 for bright blood: how well the atrium stands out differs from
    case to case.

    Late after the contrast agent all blood is alike; early, each side of the heart and each vessel
    has its own signal.
    """
    late = rng.random() < 0.45
    left, right, aorta, pulmonary = rng.normal(1, 0.04, 4) if late else rng.uniform(0.55, 1.45, 4)
    return {
        "left": left,
        "right": right,
        "cava": right * rng.uniform(0.85, 1.15),
        "pulmonary": pulmonary,
        "aorta": aorta,
        "aortic wall": rng.uniform(0.35, 0.9),
        "wall": rng.uniform(0.4, 1.0),
        "scar": rng.uniform(1.1, 1.9),
        "myocardium": rng.uniform(0.35, 0.95),
        "muscle": rng.uniform(0.28, 0.7),
        "fat": rng.uniform(0.15, 0.45)
        if rng.random() < 0.6
        else rng.uniform(0.45, 0.95),  # suppressed, or not
        "hernia": rng.uniform(0.3, 1.2),
        "liver": rng.uniform(0.4, 1.3),
        "bone": rng.uniform(0.05, 0.15),
        "marrow": rng.uniform(0.12, 0.6),
        "disc": rng.uniform(0.15, 0.5),
        "lung": rng.uniform(0.04, 0.15),
        "air": 0.03,
    }


def acquire(image, grid, rng):
    """What a scanner makes of the signal (X, Y, Z): blur, bias field, ghost, Rician noise, zero
    mean and unit std.
    """
    resolution = np.array([1.0, 1.0, rng.uniform(1.2, 2.0)]) * rng.uniform(
        0.7, 1.1
    )  # mm, coarser along z
    image = ndimage.gaussian_filter(image, resolution / grid.spacing)

    x, y, z = (
        axis / np.float32(extent) for axis, extent in zip(grid.axes, FIELD_OF_VIEW, strict=True)
    )
    slopes = rng.normal((0, -0.35, 0), (0.35, 0.45, 0.35)).astype(
        np.float32
    )  # the coil lies on the chest
    bias = slopes[0] * x[:, None, None] + slopes[1] * y[:, None] + slopes[2] * z
    image = image * np.exp(bias + np.float32(rng.uniform(0.05, 0.2)) * grid.field(rng, 110))

    ghost = np.roll(
        image, round(rng.uniform(0.2, 0.5) * grid.size[1]), axis=1
    )  # breathing, along the phase axis
    image = image + np.float32(rng.uniform(0, 0.06)) * ghost

    sigma = rng.uniform(0.05, 0.24)
    real, imaginary = (
        ndimage.gaussian_filter(
            rng.standard_normal(grid.size, dtype=np.float32), 0.5 * resolution / grid.spacing
        )
        for _ in range(2)
    )
    image = np.hypot(
        image + real / real.std() * np.float32(sigma),
        imaginary / imaginary.std() * np.float32(sigma),
    )
    return ((image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)).astype(np.float32)


def make_case(seed, index, size=SIZE):
    """Case `index` of the phantom `seed`: the same bits in whatever order and process cases are
    made.

    Args:
        seed, index: non-negative integers.
        size: voxels (X, Y, Z) of the field of view of 128×128×80 mm.

    Returns:
        image: float32 (X, Y, Z), zero mean, unit standard deviation.
        label: uint8 (X, Y, Z), 1 in the left atrium with its appendage and the first centimetre of
            its veins.
    """
    streams = np.random.SeedSequence(seed, spawn_key=(index,)).spawn(3)
    shape, look, scanner = (np.random.default_rng(stream) for stream in streams)
    grid = Grid(size, shape)
    atrium = Atrium(shape)
    tissue = draw_tissue(look)
    canvas = Canvas(grid, tissue["lung"])
    paint_chest(canvas, grid, shape, tissue, atrium)
    spine = paint_back(canvas, grid, shape, tissue, atrium)
    paint_neighbours(canvas, grid, shape, tissue, atrium, spine)
    mask = paint_atrium(canvas, grid, shape, tissue, atrium)
    return acquire(canvas.image, grid, scanner), mask.astype(np.uint8)


# ------------------------------------------------------------------ files


class Phantom(LA):
    """One split of a phantom that :func:`write_dataset` made; see :class:`dataloaders.la.LA`."""

    name = "phantom"
    patches = MappingProxyType({1: (48, 48, 32)})
    stride = (16, 16, 8)
    spacing = tuple((FIELD_OF_VIEW / SIZE).tolist())  # mm
    source = "LA's protocol on volumes of half the size"

    @classmethod
    def at(cls, root):
        """The class of the phantom in `root`, which has the size that it was made in."""
        settings = read_settings(root)
        spacing = (
            cls.spacing if settings is None else tuple((FIELD_OF_VIEW / settings["size"]).tolist())
        )
        return type(cls.__name__, (cls,), {"spacing": spacing})

    def __init__(self, root, split="train", downsample=1):
        if read_settings(root) is None:
            raise UserError(
                f"{root}: no phantom here; make it with: python code/prepare_phantom.py --root "
                f"{root}"
            )
        super().__init__(root, split, downsample)


class Phantom2d(Slices, Phantom):
    """The axial slices `(y, x)` of a phantom, for trying a 2-D method in minutes."""

    name = "phantom2d"
    patches = MappingProxyType({1: (64, 64)})
    stride = None
    net = "unet"
    augment = "rotate"
    labeled_bs, unlabeled_bs = 4, 4
    source = "ACDC's protocol on the phantom's axial slices"
    axes = (1, 0, 2)


def read_settings(root):
    """The settings (dict) of the phantom in folder `root`, None where there is none.

    Raises:
        UserError: `root` cannot be read, or its `phantom.json` is damaged.
    """
    path = Path(root) / "phantom.json"
    try:
        settings = json.loads(path.read_text())
        return {key: settings[key] for key in ("generator", "seed", "size", "train", "test")}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(
            f"{root}: is, or lies below, a file, not a folder; name another with --root"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name another folder with --root"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: damaged; restore it, or move {root} away and make the phantom again"
        ) from None


def write_dataset(
    root, seed=2018, size=SIZE, train=80, test=20, workers=None, overwrite=False, progress=None
):
    """Write a phantom in LA's layout, and its settings in `<root>/phantom.json`.

    A case that is there already is kept, so a second call does nothing and a call after an
    interruption goes on. The files do not depend on `workers`.

    Args:
        root: folder to write, made where there is none.
        seed: non-negative integer.
        size: voxels (X, Y, Z) of every case.
        train, test: number of cases of `train.list` and `test.list`.
        workers: processes, all the cores by default. More than 1 spawns interpreters, so the
            calling script needs the guard `if __name__ == "__main__"`.
        overwrite: delete the phantom that stands in `root`, whatever its settings, and make this
            one.
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
    settings = {
        "generator": GENERATOR,
        "seed": seed,
        "size": list(size),
        "train": train,
        "test": test,
    }
    _check(seed, size, train, test, workers)
    found = read_settings(root)
    if found is None:
        strangers = [
            path
            for path in (root / FOLDER, root / "train.list", root / "test.list")
            if path.exists()
        ]
        if strangers:
            raise UserError(
                f"{strangers[0]} exists and is no phantom's; choose another folder with --root"
            )
    elif found != settings or overwrite:
        if not overwrite:
            other = ", ".join(
                f"{key} {found[key]}" for key, value in settings.items() if found[key] != value
            )
            raise UserError(
                f"{root} holds another phantom ({other}); choose another --root, or re-make it: "
                "--overwrite"
            )
        with _writing():
            for path in [
                root / "train.list",
                root / "test.list",
                *(root / FOLDER).glob(f"PHANTOM*/{FILE}"),
            ]:
                path.unlink(missing_ok=True)
            for folder in (root / FOLDER).glob("PHANTOM*"):
                if not any(folder.iterdir()):
                    folder.rmdir()

    names = [f"PHANTOM{index + 1:04d}" for index in range(train + test)]
    with _writing():
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
    _write_text(root / "phantom.json", json.dumps(settings) + "\n")
    missing = [
        index for index, name in enumerate(names) if not (root / FOLDER / name / FILE).is_file()
    ]
    job = partial(_write_case, root / FOLDER, names, seed, size)
    wrap = partial(progress, total=len(missing)) if progress else iter
    workers = min(workers or _cores(), len(missing))
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for _ in wrap(pool.map(job, missing)):
                pass
    else:
        for _ in wrap(map(job, missing)):
            pass
    for split, cases in (("train", names[:train]), ("test", names[train:])):
        _write_text(root / f"{split}.list", "\n".join(cases) + "\n")
    return len(missing)


def _check(seed, size, train, test, workers):
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


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_case(folder, names, seed, size, index):
    image, label = make_case(seed, index, size)
    path = folder / names[index] / FILE

    content = h5_bytes({"image": image, "label": label})
    with _writing():
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _write_text(path, text):
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, lambda temporary: temporary.write_text(text))


@contextmanager
def _writing():
    """Turns what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); choose another folder with "
            "--root"
        ) from None
