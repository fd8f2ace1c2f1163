"""Compiled operators on masks and volumes, each beside the reference that defines it.

The kernels are in csrc/ and are built by `pip install --no-build-isolation -e .`. If they are not
built, the references run instead, with one warning.
"""

from utils.ops.crop_rot_flip import crop_rot_flip, crop_rot_flip_reference
from utils.ops.cutmix import cutmix, cutmix_reference, random_box, splice, splice_reference
from utils.ops.largest_component import largest_component, largest_component_reference
from utils.ops.signed_distance import (
    normalized_sdm,
    normalized_sdm_reference,
    signed_distance,
    signed_distance_reference,
)
from utils.ops.stitch_windows import (
    WindowStitcher,
    stitch_windows,
    stitch_windows_reference,
    window_starts,
)
from utils.ops.surface_distances import surface_distances, surface_distances_reference

__all__ = [
    "WindowStitcher",
    "crop_rot_flip",
    "crop_rot_flip_reference",
    "cutmix",
    "cutmix_reference",
    "largest_component",
    "largest_component_reference",
    "normalized_sdm",
    "normalized_sdm_reference",
    "random_box",
    "signed_distance",
    "signed_distance_reference",
    "splice",
    "splice_reference",
    "stitch_windows",
    "stitch_windows_reference",
    "surface_distances",
    "surface_distances_reference",
    "window_starts",
]
