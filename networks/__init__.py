"""One architecture a file, with a plain constructor, whose arguments every network keeps in
`config`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from networks.base import SegmentationNetwork

# name of --net: (file, class)
_CLASSES = {
    "vnet": ("vnet", "VNet"),
    "unet": ("unet", "UNet"),
    "unet_ronneberger": ("unet_ronneberger", "RonnebergerUNet"),
    "unet3d": ("unet3d", "UNet3D"),
    "resnet18": ("resnet18_3d", "ResNet18"),
    "resnet34": ("resnet34", "ResNet34"),
    "resnet34_2d": ("resnet34", "ResNet34Slices"),
}
NETWORKS = tuple(_CLASSES)


def network_class(name: str) -> "type[SegmentationNetwork]":
    """The class of a network; `name` is one of `NETWORKS`."""
    module, cls = _CLASSES[name]
    return getattr(import_module(f"networks.{module}"), cls)
