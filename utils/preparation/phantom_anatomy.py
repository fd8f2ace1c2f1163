"""The anatomy of the phantom: a left atrium, and the chest around it.

The label is the left atrium with its appendage and the first centimetre of its three to six
pulmonary veins. Its neighbourhood makes the task as hard as the real one: chambers and vessels as
bright as the atrium behind thin walls, an open mitral valve, veins that run on past the
annotation's end, and an enhancing wall.

All lengths are in mm.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from dataloaders.phantom import FIELD_OF_VIEW
from utils.preparation.phantom_shapes import (
    FAR,
    Space,
    curve,
    cut,
    ellipsoid,
    plane,
    rotation,
    union,
    unit,
)

MARGIN = 8.0  # from the border to the annotated atrium, before its pieces are blended and bent

LOBES = (  # centre and radii about the middle of the atrium, before they vary
    ((0, 0, 0), (30, 20, 21)),
    ((-14, 3, -2), (18, 16, 18)),
    ((14, -3, 5), (18, 16, 17)),
)
# Pulmonary veins about the middle of the atrium: start at the body, direction, radius.
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
VEIN_PATTERNS = (  # with their shares
    (("right superior", "right inferior", "left common"), 0.2),
    (USUAL, 0.45),
    ((*USUAL, "right middle"), 0.2),
    ((*USUAL, "right middle", "right top"), 0.15),
)


class Atrium:
    """One left atrium: its parameters are drawn from `rng`, its shapes can be drawn in any space.

    Attributes:
        turn: (3, 3), the heart's rotation.
        scale, shift: mm of the volume per mm of the heart's frame, and where its origin lies.
        lobes: pairs of centre and radii in the heart's frame; the chamber is their union.
        back: y of the plane that flattens the chamber, in the heart's frame.
        valve: where the mitral valve cuts the chamber, in the heart's frame.
        veins: triples of path (N, 3), radii (N,) and number of annotated points, in mm of the
            volume.
        appendage: pairs of path and radii.
    """

    def __init__(self, rng: np.random.Generator):
        self.turn = rotation(rng, (12, 12, 18))
        self.lobes = []
        for usual_centre, usual_radii in LOBES:
            centre = np.array(usual_centre) + rng.normal(0, 2.5, 3)
            radii = np.array(usual_radii) * rng.uniform(0.77, 1.23, 3)
            self.lobes.append((centre, radii))
        self.back = rng.uniform(14, 20)  # the spine and the aorta flatten it
        towards_valve = unit(np.array([0.62, -0.55, -0.56]) + rng.normal(0, 0.16, 3))
        self.valve = towards_valve * rng.uniform(18, 23)
        patterns, shares = zip(*VEIN_PATTERNS, strict=True)
        names = patterns[rng.choice(len(patterns), p=shares)]
        veins = [self._vein(rng, *VEINS[name]) for name in names]
        appendage = self._appendage(rng)

        annotated = [(path[:n], radii[:n]) for path, radii, n in veins] + appendage
        low, high = self._extent(annotated)
        room = FIELD_OF_VIEW - 2 * MARGIN
        self.scale = min(rng.uniform(0.8, 1.25), *(room / (high - low)))
        least = -room / 2 - self.scale * low
        most = room / 2 - self.scale * high
        self.shift = rng.normal(0, (9, 9, 5)).clip(least, most)
        self.veins = [(self.place(path), radii * self.scale, n) for path, radii, n in veins]
        self.appendage = [(self.place(path), radii * self.scale) for path, radii in appendage]

    def place(self, points: Sequence) -> np.ndarray:
        """Points (..., 3) of the heart's frame in mm of the volume."""
        return np.asarray(points, float) @ self.turn.T * self.scale + self.shift

    def body(self, points: Sequence[np.ndarray]) -> np.ndarray:
        """Distance to the chamber, without veins and appendage, at three arrays of coordinates of
        the heart's frame.
        """
        lobes = [ellipsoid(points, centre, radii) for centre, radii in self.lobes]
        body = union(union(lobes[0], lobes[1], 8), lobes[2], 8)
        body = cut(body, plane(points, (0, self.back, 0), (0, 1, 0)), 6)
        return cut(body, plane(points, self.valve, unit(self.valve)), 2)

    def draw(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """Distances (X, Y, Z) to the annotated atrium and to the veins beyond it."""
        moved = [p - np.float32(s) for p, s in zip(space.points, self.shift, strict=True)]
        local = [
            sum(np.float32(w / self.scale) * m for w, m in zip(row, moved, strict=True))
            for row in self.turn.T
        ]
        lumen = self.body(local) * np.float32(self.scale)
        for path, radii in self.appendage:
            lumen = union(lumen, space.tube(path, radii), 3)
        veins = np.full(space.size, FAR, np.float32)
        for path, radii, n in self.veins:
            vein = space.tube(path[::3], radii[::3])
            veins = union(veins, vein)
            end = plane(space.points, path[n - 1], unit(path[n - 1] - path[n - 4]))
            lumen = union(lumen, cut(vein, end), 4)
        return lumen, veins

    def _vein(
        self,
        rng: np.random.Generator,
        start: Sequence[float],
        direction: Sequence[float],
        radius: float,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        start = np.array(start) + rng.normal(0, 2.5, 3)
        direction = unit(np.array(direction) + rng.normal(0, 0.2, 3))
        radius *= rng.uniform(0.75, 1.2)
        bend = unit(direction + rng.normal(0, 0.35, 3) + (0, 0.25, 0))
        path = curve(start, start + 20 * direction, start + 20 * direction + 28 * bend, 25)
        radii = radius * np.interp(np.linspace(0, 1, 25), (0, 0.4, 1), (1.15, 0.9, 0.6))
        length = np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
        ostium = length[np.argmax(self.body(path.T) > 0)]
        return path, radii, int(np.searchsorted(length, ostium + rng.uniform(9, 11)))

    def _appendage(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """A curved finger in front of the left superior vein, with a lobe or two at its side."""
        start = np.array((19, -9, 10)) + rng.normal(0, 2, 3)
        length = rng.uniform(13, 19)
        elbow = start + length * unit(np.array((0.80, -0.45, 0.35)) + rng.normal(0, 0.2, 3))
        length = rng.uniform(10, 20)
        tip = elbow + length * unit(np.array((0.35, -0.70, -0.35)) + rng.normal(0, 0.4, 3))
        path = curve(start, elbow, tip)
        parts = [(path, rng.uniform(6, 8.5) * np.linspace(1.1, 0.6, len(path)))]
        for _ in range(rng.integers(1, 3)):
            root = path[rng.integers(3, 6)]
            end = root + rng.uniform(5, 9) * unit(rng.normal(0, 1, 3))
            parts.append((np.stack([root, end]), np.array([5.0, 3.5])))
        return parts

    def _extent(self, tubes: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """The box of lobes and tubes, turned but not yet scaled or moved: two corners (3,)."""
        corners = []
        for centre, radii in self.lobes:
            half = np.sqrt(((self.turn * radii) ** 2).sum(1))
            corners += [self.turn @ centre - half, self.turn @ centre + half]
        for path, radii in tubes:
            turned = path @ self.turn.T
            corners += [*(turned - radii[:, None]), *(turned + radii[:, None])]
        return np.min(corners, 0), np.max(corners, 0)


class Canvas:
    """The image in the making: shapes are painted one over the other, each voxel by the share of it
    that is covered.
    """

    def __init__(self, space: Space, value: float):
        self.image = np.full(space.size, value, np.float32)
        self.voxel = np.float32(space.spacing.mean())

    def paint(self, distance: np.ndarray, value: float | np.ndarray, opacity: float = 1.0) -> None:
        cover = (0.5 - distance / self.voxel).clip(0, 1) * np.float32(opacity)
        self.image += cover * (np.asarray(value, np.float32) - self.image)

    def vessel(
        self,
        distance: np.ndarray,
        blood: float | np.ndarray,
        wall: float | np.ndarray,
        thickness: float = 1.5,
    ) -> None:
        """A lumen inside a wall of `thickness` mm."""
        self.paint(distance - np.float32(thickness), wall)
        self.paint(distance, blood)


def paint_case(
    space: Space, rng: np.random.Generator, tissue: Mapping[str, float], atrium: Atrium
) -> tuple[np.ndarray, np.ndarray]:
    """The signal of a chest, and where its left atrium is.

    Args:
        tissue: signal of each tissue (`phantom_imaging.draw_tissue`).

    Returns:
        image: float32 (X, Y, Z).
        mask: bool (X, Y, Z).
    """
    canvas = Canvas(space, tissue["lung"])
    paint_chest(canvas, space, rng, tissue, atrium)
    spine = paint_back(canvas, space, rng, tissue, atrium)
    paint_neighbours(canvas, space, rng, tissue, atrium, spine)
    mask = paint_atrium(canvas, space, rng, tissue, atrium)
    return canvas.image, mask


def paint_chest(
    canvas: Canvas,
    space: Space,
    rng: np.random.Generator,
    tissue: Mapping[str, float],
    atrium: Atrium,
) -> None:
    """The lungs with their vessels, the mediastinum between them, the liver, the chest wall with
    its ribs.
    """
    for _ in range(26):
        side = rng.choice((-1, 1))
        start = np.array([side * rng.uniform(34, 60), rng.uniform(-35, 45), rng.uniform(-40, 40)])
        end = start + rng.uniform(10, 26) * unit(rng.normal((0.6 * side, 0.3, 0), 1))
        radius = rng.uniform(0.7, 2.4)
        vessel = space.tube([start, end], [radius, radius / 2])
        canvas.paint(vessel, tissue["right"] * rng.uniform(0.6, 1))

    heart = space.ellipsoid(atrium.place((2, -16, -8)), np.array([54, 42, 62]) * atrium.scale)
    column = space.ellipsoid((atrium.shift[0] * 0.5 + 4, atrium.shift[1] + 34, 0), (30, 26, 200))
    top = space.ellipsoid(atrium.place((0, -10, 40)), (46, 44, 30))
    mediastinum = union(union(heart, column, 12), top, 12)
    canvas.paint(mediastinum - 2, tissue["muscle"])  # pericardium and pleura
    canvas.paint(mediastinum, tissue["fat"] * (1 + 0.2 * space.field(rng, 14)))

    centre = (rng.uniform(-50, -35), rng.uniform(-25, -5), rng.uniform(-82, -66))
    liver = space.ellipsoid(centre, (56, 52, 40), rotation(rng, (5, 10, 5)))
    canvas.paint(liver, tissue["liver"])

    centre = (rng.normal(0, 4), rng.normal(-2, 3), 0)
    inner = space.ellipsoid(centre, (rng.uniform(76, 90), rng.uniform(55, 62), 900))
    layers = 0.85 + 0.35 * np.sin(inner * np.float32(0.7) + space.field(rng, 40))
    canvas.paint(-inner, tissue["muscle"] * layers)
    slope = rng.uniform(0.2, 0.5)
    first = rng.uniform(-50, -25)
    step = rng.uniform(24, 30)
    angles = np.linspace(-1.45, 1.45, 9)  # from breastbone to spine
    for level in np.arange(first, 90, step):
        for side in (-1, 1):
            ring = [
                (side * 80 * np.cos(a), 60 * np.sin(a), level - slope * 40 * np.sin(a - 1))
                for a in angles
            ]
            rib = space.tube(np.array(ring), np.full(9, 5.0))
            canvas.paint(rib, tissue["bone"])
            canvas.paint(rib + 2, tissue["marrow"])


def paint_back(
    canvas: Canvas,
    space: Space,
    rng: np.random.Generator,
    tissue: Mapping[str, float],
    atrium: Atrium,
) -> tuple[float, float]:
    """Spine, airways and gullet behind the atrium; returns where the spine stands, (x, y)."""
    x, y, z = space.points
    middle = np.float32(atrium.shift[0] * 0.5 - rng.uniform(4, 12))
    back = np.float32(atrium.shift[1] + 20 * atrium.scale + rng.uniform(22, 28))
    height = z - np.float32(rng.uniform(-15, 15)) - 0.1 * (y - back)
    bodies = np.cos(height * np.float32(2 * np.pi / rng.uniform(26, 32)))
    waist = 15 + 1.5 * bodies  # a vertebra is narrower at its middle than a disc
    spine = np.sqrt((x - middle) ** 2 + ((y - back) / np.float32(0.85)) ** 2) - waist
    canvas.paint(spine - 2.5, tissue["muscle"] * 1.2)
    canvas.paint(spine, tissue["bone"])
    marrow = tissue["marrow"] + (tissue["disc"] - tissue["marrow"]) * (bodies > 0.75)
    canvas.paint(spine + 2, marrow * (1 + 0.2 * space.field(rng, 10)))
    canal = np.sqrt(((x - middle) / np.float32(1.2)) ** 2 + (y - back - 24) ** 2) - 8
    canvas.vessel(canal, tissue["lung"] * 2, tissue["muscle"] * 1.4, 2)

    carina = atrium.place((2, 16, rng.uniform(30, 38)))
    for way, radius in (((0, -2, 40), 8), ((-34, 8, -16), 6), ((34, 12, -18), 5.5)):
        bronchus = space.tube([carina, carina + way], [radius, radius * 0.85])
        canvas.vessel(bronchus, tissue["air"], tissue["muscle"])
    course = atrium.shift[0] * 0.5 + rng.normal(5, 3), back - rng.uniform(19, 22)
    gullet = space.tube(np.array([(*course, -60), (*course, 60)]), np.full(2, 5.5))
    canvas.paint(gullet, tissue["muscle"] * 1.4)
    canvas.paint(gullet + 3.5, tissue["muscle"] * 0.6)
    # a hiatal hernia: a chamber behind the atrium that is none of the heart's
    if rng.random() < 0.25:
        centre = (*course, rng.uniform(-40, -10))
        hernia = space.ellipsoid(centre, rng.uniform((12, 9, 14), (22, 14, 26)))
        canvas.vessel(hernia, tissue["hernia"], tissue["muscle"] * 1.4, 2)
    return middle, back


def paint_neighbours(
    canvas: Canvas,
    space: Space,
    rng: np.random.Generator,
    tissue: Mapping[str, float],
    atrium: Atrium,
    spine: tuple[float, float],
) -> None:
    """The other chambers and the great vessels: as bright as the atrium, or nearly so, and against
    its wall.
    """

    def chamber(centre, radii, tilt=(10, 10, 15)):
        centre = atrium.place(np.array(centre) + rng.normal(0, 4, 3))
        radii = np.array(radii) * atrium.scale * rng.uniform(0.8, 1.2, 3)
        return space.ellipsoid(centre, radii, (atrium.turn @ rotation(rng, tilt)).T)

    def pipe(points, radius):
        path = atrium.place(np.array(points) + rng.normal(0, 2.5, (len(points), 3)))
        radius = radius * atrium.scale * rng.uniform(0.8, 1.2)
        return space.tube(path, np.full(len(points), radius))

    wall = tissue["wall"]
    right = tissue["right"]
    aorta = tissue["aorta"]

    left_ventricle = chamber((44, -34, -30), (20, 22, 30))
    thickness = np.float32(rng.uniform(7, 11))
    myocardium = tissue["myocardium"] * (1 + 0.1 * space.field(rng, 20))
    canvas.paint(left_ventricle - thickness, myocardium)
    right_ventricle = chamber((2, -54, -24), (34, 17, 28))
    canvas.vessel(right_ventricle, right, tissue["myocardium"], 3)
    canvas.paint(left_ventricle, tissue["left"])

    right_atrium = chamber((-36, -30, -12), (19, 22, 26))
    right_atrium = union(right_atrium, pipe(((-36, -12, -30), (-34, 0, -70)), 10), 6)
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

    middle, back = spine
    x = middle + rng.uniform(21, 27)
    y = back - rng.uniform(4, 12)
    radius = rng.uniform(9, 12.5)
    path = [(x + rng.normal(0, 2), y + rng.normal(0, 2), z) for z in (-60, -20, 20, 60)]
    canvas.vessel(space.tube(np.array(path), np.full(4, radius)), aorta, tissue["aortic wall"], 2)


def paint_atrium(
    canvas: Canvas,
    space: Space,
    rng: np.random.Generator,
    tissue: Mapping[str, float],
    atrium: Atrium,
) -> np.ndarray:
    """The atrium with its enhancing wall, its veins and the open valve; returns its mask (X, Y, Z)
    of bool.
    """
    lumen, veins = atrium.draw(space)
    scar = np.clip(2 * space.field(rng, rng.uniform(18, 40)) - rng.uniform(0, 2.5), 0, 1)
    wall = tissue["wall"] + (tissue["scar"] - tissue["wall"]) * scar
    blood = tissue["left"] * (1 + 0.05 * space.field(rng, 10))
    canvas.vessel(union(lumen, veins), blood, wall, rng.uniform(1.2, 2.4))

    # Through the open valve atrium and ventricle are one pool, with only leaflets between them.
    valve = atrium.place([atrium.valve * 0.8, atrium.valve * 1.25, (42, -34, -28)])
    inflow = space.tube(valve, np.array([12, 12, 10]) * atrium.scale)
    canvas.paint(cut(inflow, -lumen), blood, opacity=rng.uniform(0.6, 1))
    pieces, _ = ndimage.label(lumen < 0)  # a tip thinner than a voxel can break off
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
