"""Compiled operators on masks and volumes, each beside the reference that defines it.

The kernels stand in csrc/ and are built by ``pip install --no-build-isolation -e .``; where they are not built the
references run in their place, with one warning.
"""

from utils.ops.signed_distance import (
    normalized_sdm,
    normalized_sdm_reference,
    signed_distance,
    signed_distance_reference,
)
from utils.ops.stitch_windows import WindowStitcher, stitch_windows, stitch_windows_reference, window_starts

__all__ = [
    "WindowStitcher",
    "normalized_sdm",
    "normalized_sdm_reference",
    "signed_distance",
    "signed_distance_reference",
    "stitch_windows",
    "stitch_windows_reference",
    "window_starts",
]
