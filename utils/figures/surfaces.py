"""Figures of one case in three dimensions: its shaded surfaces in a parallel projection with a
scale bar.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import TriMesh
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.tri import Triangulation
from scipy import ndimage, sparse
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from utils.figures.cases import around, voxel_size
from utils.figures.style import (
    BAR_FOOT,
    FAINT,
    HEAD,
    INK,
    OVER,
    SIDE,
    bar_length,
    beside,
    colour_bar,
    headline,
    over,
    page,
    save,
)

VERTICES = 60_000  # about the most that a surface is drawn with: more are finer than print
DISTANCE = LinearSegmentedColormap.from_list(
    "distance", ["#0072B2", "#56B4E9", "#EFEFEF", "#E69F00", "#D55E00"]
)
# Degrees about the z axis from straight in front, for arrays with y to the patient's back, and
# degrees above.
VIEWS = {"from the front": (25, 20), "from the back": (205, 20)}


class Mesh(NamedTuple):
    """The surface of a mask.

    Attributes:
        vertices: `(N, 3)`, each half-way between the centres of a voxel of the mask and a
            neighbour outside, in mm or voxels.
        faces: `(M, 3)` their indices, counter-clockwise from outside.
    """

    vertices: np.ndarray
    faces: np.ndarray


class View(NamedTuple):
    """The part of a projection that a panel shows, in the unit of the meshes."""

    width: float
    height: float
    centre: tuple[float, float]


class _Surfaces(NamedTuple):
    """Reference and prediction of a class.

    Attributes:
        meshes: None for one without a voxel.
        distances: of each mesh's vertices; None without another mesh.
        views: one for each of `VIEWS`.
    """

    meshes: list[Mesh | None]
    distances: tuple[np.ndarray | None, np.ndarray | None]
    views: list[View]


def surface_figure(
    path: str | Path,
    pred: np.ndarray,
    target: np.ndarray,
    title: str,
    spacing: Sequence[float] | None = None,
    class_names: Sequence[str] = ("",),
) -> None:
    """The surfaces of reference and prediction, side by side from the front and from the back, in a
    row a class.

    Colours are distances to the other surface: blue where the prediction lies within the reference,
    orange where it lies beyond, up to the 95th percentile of all. Surfaces pass between voxel
    centres. They are smoothed without loss of volume (Taubin, SIGGRAPH 1995) for the picture, not
    for the distances. A surface of more than `VERTICES` vertices is made coarser, together with the
    other: both masks are drawn in blocks of 2, 3, … voxels a side, and a block is set if half of it
    is, so thin parts can be missing.

    Args:
        path: file to write, whole or not at all.
        pred, target: labels `(X, Y, Z)`, 0 the background, x to the patient's left, y to the
            back, z to the head.
        title: set in bold above the surfaces.
        spacing: size of a voxel along each axis in mm, the unit of distances and of a scale bar
            then.
        class_names: of the foreground classes.

    Raises:
        ValueError: the arrays are not 3-D of one shape.
    """
    if pred.ndim != 3 or pred.shape != target.shape:
        raise ValueError(f"need two volumes of one shape, got {pred.shape} and {target.shape}")
    box = around((pred > 0) | (target > 0))  # the rest would only take time
    pred = pred[box]
    target = target[box]
    size = voxel_size(spacing)
    several = len(class_names) > 1
    classes = [
        _surfaces(target == c, pred == c, size, spacing is not None)
        for c in range(1, len(class_names) + 1)
    ]
    distances = _all_distances(classes)
    limit = max(np.ceil(np.percentile(distances, 95)), 1.0) if len(distances) else 1.0
    norm = Normalize(-limit, limit)

    foot = BAR_FOOT if len(distances) else SIDE
    left = 0.2 if several else 0.0
    figure, rows = page(_aspects(classes), HEAD + OVER, foot, left, tallest=1.8)
    for name, row, one in zip(class_names, rows, classes, strict=True):
        _draw_row(row, one, norm)
        if spacing is not None:
            scale_bar(row[0], bar_length([one.views[0].width]))
        if several:
            beside(row[0], name)
    panels = iter(rows[0])
    for view in VIEWS:
        over(next(panels), f"reference, {view}")
        over(next(panels), f"prediction, {view}")
    headline(figure, title)
    if len(distances):  # otherwise one mask or the other is empty, and all that is drawn is grey
        unit = "mm" if spacing is not None else "voxels"
        sides = ("prediction within the reference", f"beyond it ({unit})")
        clipped = distances.max() > limit
        colour_bar(figure, 0.5, norm, DISTANCE, sides, clipped=clipped)
    save(figure, path)


def _surfaces(target: np.ndarray, pred: np.ndarray, size: np.ndarray, bar: bool) -> _Surfaces:
    """The surfaces of a class; `bar` leaves room for a scale bar."""
    meshes, masks, step = meshes_of([target, pred], size)
    distances = _distances(meshes, masks, step)
    return _Surfaces(meshes, distances, views_of(meshes, size * pred.shape, bar))


def _all_distances(classes: Sequence[_Surfaces]) -> np.ndarray:
    """The distances of all vertices of all classes, without sign."""
    found = [np.zeros(0)]
    for surfaces in classes:
        found += [np.abs(d) for d in surfaces.distances if d is not None]
    return np.concatenate(found)


def _aspects(classes: Sequence[_Surfaces]) -> list[list[float]]:
    """Width by height of each class's panels: reference and prediction in each view."""
    aspects = []
    for surfaces in classes:
        of_views = [view.width / view.height for view in surfaces.views]
        aspects.append(np.repeat(of_views, 2).tolist())
    return aspects


def _draw_row(row: Sequence[Axes], surfaces: _Surfaces, norm: Normalize) -> None:
    """The panels of a class: reference and prediction from the front, then from the back."""
    smooth = [mesh and smoothed(mesh) for mesh in surfaces.meshes]
    panels = iter(row)
    for view, angles in zip(surfaces.views, VIEWS.values(), strict=True):
        for mesh, distance in zip(smooth, surfaces.distances, strict=True):
            draw_mesh(next(panels), view, mesh, distance, norm, angles)


def draw_mesh(
    ax: Axes,
    view: View,
    mesh: Mesh | None,
    distance: np.ndarray | None,
    norm: Normalize,
    angles: tuple[float, float],
) -> None:
    """A mesh in a panel, as it is seen from `angles`, its vertices coloured by their distances, or
    grey without them; the word `empty` in place of none.
    """
    x, y = view.centre
    ax.set_xlim(x - view.width / 2, x + view.width / 2)
    ax.set_ylim(y - view.height / 2, y + view.height / 2)
    if mesh is None:
        middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
        ax.text(0.5, 0.5, "empty", size=7, color=FAINT, **middle)
    else:
        ax.add_collection(_shaded(mesh, distance, norm, angles), autolim=False)


def meshes_of(
    masks: Sequence[np.ndarray], size: np.ndarray
) -> tuple[list[Mesh | None], list[np.ndarray], np.ndarray]:
    """The meshes of masks of one shape, None for one without a voxel; the masks as they were
    meshed; and the size of their voxels.
    """
    masks = list(masks)
    factor = int(np.ceil(np.sqrt(max(map(_count_vertices, masks)) / VERTICES)))
    if factor > 1:
        masks = [_coarser(mask, factor) for mask in masks]
        size = size * factor
    return [_mesh(mask, size) for mask in masks], masks, size


def _count_vertices(mask: np.ndarray) -> int:
    """Number of vertices of the mask's surface: one between each two neighbours that differ, except
    at the volume's edge.
    """
    pairs = ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]), (mask[..., 1:], mask[..., :-1]))
    return sum(np.count_nonzero(one != other) for one, other in pairs)


def _coarser(mask: np.ndarray, factor: int) -> np.ndarray:
    """The mask with one voxel for each block; it is set if half of the block is."""
    padded = np.pad(mask, [(0, -s % factor) for s in mask.shape])
    blocks = padded.reshape([n for s in padded.shape for n in (s // factor, factor)])
    return blocks.sum((1, 3, 5), dtype=np.uint32) * 2 >= factor**3


def _mesh(mask: np.ndarray, size: np.ndarray) -> Mesh | None:
    box = ndimage.find_objects(mask.astype(np.uint8))[0] if mask.any() else None
    if box is None:
        return None
    volume = np.pad(mask[box], 1).astype(np.float32)
    vertices, faces, *_ = marching_cubes(volume, 0.5, gradient_direction="ascent")
    corner = [part.start - 1 for part in box]
    return Mesh((vertices + corner + 0.5) * size, faces)


def _distances(
    meshes: list[Mesh | None], masks: list[np.ndarray], size: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Distance of each vertex to the nearest of the other mesh, negative where the prediction lies
    within the reference; None without another mesh.
    """
    target, pred = meshes
    if target is None or pred is None:
        return None, None
    # a vertex of the reference outside of the prediction is where the prediction lies within
    return -distances_to(target, pred, masks[1], size), distances_to(pred, target, masks[0], size)


def distances_to(mesh: Mesh, other: Mesh, inside: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Distance of each vertex of a mesh to the nearest of another one, negative within it.

    Args:
        inside: the mask that the other mesh is of, with voxels of `size`.
    """
    distance, _ = KDTree(other.vertices).query(mesh.vertices)
    place = (mesh.vertices / size - 0.5).T
    within = ndimage.map_coordinates(inside.astype(np.float32), place, order=1) >= 0.5
    return np.where(within, -distance, distance)


def smoothed(mesh: Mesh, times: int = 10) -> Mesh:
    """The mesh without the voxels' steps: it is shrunk and grown back in turns."""
    rows = mesh.faces[:, [0, 1, 2, 1, 2, 0]].ravel()
    columns = mesh.faces[:, [1, 2, 0, 0, 1, 2]].ravel()
    n = len(mesh.vertices)
    neighbours = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, n))
    share = sparse.diags_array(1 / neighbours.sum(1)) @ neighbours
    vertices = mesh.vertices
    for factor in times * (0.5, -0.53):
        vertices = vertices + factor * (share @ vertices - vertices)
    return Mesh(vertices, mesh.faces)


def _axes(angles: tuple[float, float]) -> np.ndarray:
    """Rows: to the viewer's right, up, and towards the viewer."""
    turn, rise = np.radians(angles)
    near = np.array([np.cos(rise) * np.sin(turn), -np.cos(rise) * np.cos(turn), np.sin(rise)])
    right = np.array([np.cos(turn), np.sin(turn), 0.0])
    return np.array([right, np.cross(near, right), near])


def views_of(meshes: Sequence[Mesh | None], extents: np.ndarray, bar: bool) -> list[View]:
    """The part of the surfaces that each of `VIEWS` shows, with a margin and, for a `bar`, room
    below. All views have one size and so one scale.

    Args:
        extents: of the volume, which is shown where there is no surface.
    """
    vertices = [mesh.vertices for mesh in meshes if mesh]
    corners = np.concatenate(vertices or [np.array([np.zeros(3), extents])])
    flat = [corners @ _axes(angles)[:2].T for angles in VIEWS.values()]
    shown = np.max([np.ptp(points, 0) for points in flat], 0)
    width, height = np.maximum(1.06 * shown, 0.4 * shown.max())
    room = 0.16 * height if bar else 0.0
    views = []
    for points in flat:
        x, y = (points.min(0) + points.max(0)) / 2
        views.append(View(width, height + room, (x, y - room / 2)))
    return views


def _shaded(
    mesh: Mesh, distance: np.ndarray | None, norm: Normalize, angles: tuple[float, float]
) -> TriMesh:
    """The faces that look at the viewer, from the farthest to the nearest, with light from the
    upper left.
    """
    axes = _axes(angles)
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = mesh.vertices @ axes.T
    order = np.argsort(flat[:, 2][mesh.faces].sum(1))
    order = order[(normals @ axes[2])[order] > 0]

    smooth = np.zeros_like(mesh.vertices)
    for corner in range(3):
        for axis in range(3):
            smooth[:, axis] += np.bincount(mesh.faces[:, corner], normals[:, axis], len(smooth))
    smooth = smooth @ axes.T
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    light = np.array([-0.45, 0.55, 0.7])
    bright = 0.42 + 0.58 * np.clip(smooth @ (light / np.linalg.norm(light)), 0, 1)
    if distance is None:
        colours = np.tile(to_rgba("#CFCFCF"), (len(flat), 1))
    else:
        colours = DISTANCE(norm(distance))
    colours[:, :3] *= bright[:, None]

    collection = TriMesh(Triangulation(flat[:, 0], flat[:, 1], mesh.faces[order]), rasterized=True)
    collection.set_facecolor(colours)
    return collection


def scale_bar(ax: Axes, length: float) -> None:
    """A bar of `length` mm at the lower left of a panel of surfaces."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = left + 0.03 * (right - left), bottom + 0.03 * (top - bottom)
    ax.plot([x, x + length], [y, y], color=INK, lw=1.5, solid_capstyle="butt")
    above = y + 0.02 * (top - bottom)
    ax.text(x + length / 2, above, f"{length:g} mm", ha="center", va="bottom", size=6, color=INK)
