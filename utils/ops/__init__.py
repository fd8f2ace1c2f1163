"""Compiled operators on masks and volumes, each beside the reference that defines it.

The kernels stand in csrc/ and are built by ``pip install --no-build-isolation -e .``; where they are not built the
references run in their place, with one warning.
"""

from utils.ops.largest_component import largest_component, largest_component_reference
from utils.ops.signed_distance import (
    normalized_sdm,
    normalized_sdm_reference,
    signed_distance,
    signed_distance_reference,
)

__all__ = [
    "largest_component",
    "largest_component_reference",
    "normalized_sdm",
    "normalized_sdm_reference",
    "signed_distance",
    "signed_distance_reference",
]
