"""Figures of one case in three dimensions: its surfaces, shaded, in a parallel projection with a
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

VERTICES = 60_000  # of a surface at most, or nearly: more are finer than a printed panel
DISTANCE = LinearSegmentedColormap.from_list(
    "distance", ["#0072B2", "#56B4E9", "#EFEFEF", "#E69F00", "#D55E00"]
)
# Degrees about the z axis from straight in front, for arrays with y to the patient's back, and
# degrees above.
VIEWS = {"from the front": (25, 20), "from the back": (205, 20)}


class Mesh(NamedTuple):
    """The surface of a mask.

    Attributes:
        vertices: ``(N, 3)`` half-way between two voxels' centres of which the mask holds one, in
            the unit of ``size``.
        faces: ``(M, 3)`` their indices, counter-clockwise from outside.
    """

    vertices: np.ndarray
    faces: np.ndarray


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
    centres and are smoothed without loss of volume (Taubin, SIGGRAPH 1995) for the picture, not for
    the distances. Where a mask has more than :data:`VERTICES` both are drawn at half their
    resolution, or a third, …, without what is smaller than half of such a voxel.

    Args:
        path: file to write, whole or not at all.
        pred, target: labels ``(X, Y, Z)``, 0 the background, x to the patient's left, y to the
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
    box = around((pred > 0) | (target > 0))  # the rest takes time alone
    pred, target = pred[box], target[box]
    size, several = voxel_size(spacing), len(class_names) > 1
    pairs = [_pair([target == c, pred == c], size) for c in range(1, len(class_names) + 1)]
    distances = [_distances(meshes, masks, step) for meshes, masks, step in pairs]
    measured = np.concatenate(
        [np.abs(d) for pair in distances for d in pair if d is not None] or [np.zeros(0)]
    )
    limit = max(np.ceil(np.percentile(measured, 95)), 1.0) if len(measured) else 1.0

    boxes = [_boxes(meshes, size * pred.shape, spacing is not None) for meshes, *_ in pairs]
    aspects = [[box[0] / box[1] for box in row for _ in range(2)] for row in boxes]
    figure, rows = page(
        aspects, HEAD + OVER, BAR_FOOT if len(measured) else SIDE, 0.2 * several, tallest=1.8
    )
    norm = Normalize(-limit, limit)
    for c, (name, row, (meshes, *_), pair, views) in enumerate(
        zip(class_names, rows, pairs, distances, boxes, strict=True), 1
    ):
        smooth = [mesh and Mesh(_smoothed(mesh), mesh.faces) for mesh in meshes]
        places = [(view, which) for view in range(len(VIEWS)) for which in range(2)]
        for ax, (view, which) in zip(row, places, strict=True):
            width, height, centre = views[view]
            ax.set_xlim(centre[0] - width / 2, centre[0] + width / 2)
            ax.set_ylim(centre[1] - height / 2, centre[1] + height / 2)
            angles = list(VIEWS.values())[view]
            if smooth[which] is None:
                ax.text(
                    0.5,
                    0.5,
                    "empty",
                    transform=ax.transAxes,
                    ha="center",
                    va="center",
                    size=7,
                    color=FAINT,
                )
            else:
                ax.add_collection(_shaded(smooth[which], pair[which], norm, angles), autolim=False)
            if c == 1:
                over(ax, f"{('reference', 'prediction')[which]}, {list(VIEWS)[view]}")
            if spacing is not None and (view, which) == (0, 0):
                _scale_bar(ax, bar_length([width]))
        if several:
            beside(row[0], name)
    headline(figure, title)
    if not len(measured):  # one mask or the other is empty: all that is drawn is grey
        save(figure, path)
        return
    sides = (
        "prediction within the reference",
        f"beyond it ({'mm' if spacing is not None else 'voxels'})",
    )
    colour_bar(figure, 0.5, norm, DISTANCE, sides, clipped=measured.max() > limit)
    save(figure, path)


def _pair(
    masks: list[np.ndarray], size: np.ndarray
) -> tuple[list[Mesh | None], list[np.ndarray], np.ndarray]:
    """The meshes of two masks, None for one without a voxel; and the masks as they were meshed, and
    their voxels.
    """
    factor = int(np.ceil(np.sqrt(max(map(_count_vertices, masks)) / VERTICES)))
    if factor > 1:
        masks, size = [_coarser(mask, factor) for mask in masks], size * factor
    return [_mesh(mask, size) for mask in masks], masks, size


def _count_vertices(mask: np.ndarray) -> int:
    """Of the mask's surface, one between each two neighbours that differ; without those at the
    volume's edge.
    """
    pairs = ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]), (mask[..., 1:], mask[..., :-1]))
    return sum(np.count_nonzero(one != other) for one, other in pairs)


def _coarser(mask: np.ndarray, factor: int) -> np.ndarray:
    """A voxel of each block, the mask's if half of the block is."""
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
    """Of each vertex to the nearest of the other mesh, negative where the prediction lies within
    the reference.

    None without another mesh.
    """
    if None in meshes:
        return None, None
    result = []
    for which, sign in (
        (0, 1),
        (1, -1),
    ):  # inside of the other: the reference is there exceeded, the prediction short
        own, other = meshes[which], meshes[1 - which]
        distance, _ = KDTree(other.vertices).query(own.vertices)
        place = (own.vertices / size - 0.5).T
        inside = ndimage.map_coordinates(masks[1 - which].astype(np.float32), place, order=1) >= 0.5
        result.append(sign * np.where(inside, distance, -distance))
    return tuple(result)


def _smoothed(mesh: Mesh, times: int = 10) -> np.ndarray:
    """Vertices without the voxels' steps: turns of shrinking and growing back."""
    rows = mesh.faces[:, [0, 1, 2, 1, 2, 0]].ravel()
    columns = mesh.faces[:, [1, 2, 0, 0, 1, 2]].ravel()
    n = len(mesh.vertices)
    neighbours = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(n, n))
    share = sparse.diags_array(1 / neighbours.sum(1)) @ neighbours
    vertices = mesh.vertices
    for factor in times * (0.5, -0.53):
        vertices = vertices + factor * (share @ vertices - vertices)
    return vertices


def _axes(angles: tuple[float, float]) -> np.ndarray:
    """Rows: to the viewer's right, up, and towards the viewer."""
    turn, rise = np.radians(angles)
    near = np.array([np.cos(rise) * np.sin(turn), -np.cos(rise) * np.cos(turn), np.sin(rise)])
    right = np.array([np.cos(turn), np.sin(turn), 0.0])
    return np.array([right, np.cross(near, right), near])


def _boxes(
    meshes: list[Mesh | None], extents: np.ndarray, bar: bool
) -> list[tuple[float, float, tuple[float, float]]]:
    """Width, height and centre of what each view shows of both surfaces, with a margin, and below
    it room for a bar; of one size, so that all views have one scale."""
    corners = np.concatenate(
        [mesh.vertices for mesh in meshes if mesh] or [np.array([np.zeros(3), extents])]
    )
    flat = [corners @ _axes(angles)[:2].T for angles in VIEWS.values()]
    middles = [(points.min(0) + points.max(0)) / 2 for points in flat]
    shown = np.max([np.ptp(points, 0) for points in flat], 0)
    width, height = np.maximum(1.06 * shown, 0.4 * shown.max())
    room = 0.16 * height if bar else 0.0
    return [(width, height + room, (x, y - room / 2)) for x, y in middles]


def _shaded(
    mesh: Mesh, distance: np.ndarray | None, norm: Normalize, angles: tuple[float, float]
) -> TriMesh:
    """The faces that look at the viewer, painted from the farthest to the nearest, with light from
    the upper left.
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
    colours = (
        np.tile(to_rgba("#CFCFCF"), (len(flat), 1))
        if distance is None
        else DISTANCE(norm(distance))
    )
    colours[:, :3] *= bright[:, None]

    collection = TriMesh(Triangulation(flat[:, 0], flat[:, 1], mesh.faces[order]), rasterized=True)
    collection.set_facecolor(colours)
    return collection


def _scale_bar(ax: Axes, length: float) -> None:
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    x, y = left + 0.03 * (right - left), bottom + 0.03 * (top - bottom)
    ax.plot([x, x + length], [y, y], color=INK, lw=1.5, solid_capstyle="butt")
    ax.text(
        x + length / 2,
        y + 0.02 * (top - bottom),
        f"{length:g} mm",
        ha="center",
        va="bottom",
        size=6,
        color=INK,
    )
