"""One architecture a file, plain constructors; every network keeps its constructor's arguments in
``config``.
"""

from importlib import import_module

# name of --net: (file, class)
_CLASSES = {
    "vnet": ("vnet", "VNet"),
    "unet": ("unet", "UNet"),
    "unet3d": ("unet3d", "UNet3D"),
    "resnet18": ("resnet18_3d", "ResNet18"),
}
NETWORKS = tuple(_CLASSES)


def network_class(name):
    """The class of a network, with its `dims`, `multiples`, `bottom` and `defaults`; `name` is one
    of `NETWORKS`.
    """
    module, cls = _CLASSES[name]
    return getattr(import_module(f"networks.{module}"), cls)
