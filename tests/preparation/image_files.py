"""Images of no easy geometry, DICOM series of them, and whether two lie in the same place."""

import numpy as np
import SimpleITK

UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)
TILTED = (0.96, -0.28, 0.0, 0.224, 0.768, -0.6, 0.168, 0.576, 0.8)  # turned about two axes


def as_image(array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=UPRIGHT):
    """An array `(X, Y, Z)` as an image of SimpleITK."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


def oblique(shape=(12, 11, 5), dtype=np.int16):
    """An image of random voxels, each axis of another spacing, none along the patient's."""
    array = np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)
    return as_image(array, (0.7, 0.9, 3.0), (-40.5, 12.25, 300.0), TILTED)


def write_dicom(folder, image, uid="1.2.826.0.1.3680043.2.1125.1", first=0, skip=()):
    """A DICOM series, a file a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    d = image.GetDirection()
    for k in sorted(set(range(image.GetSize()[2])) - set(skip)):
        tags = {
            "0008|0018": f"{uid}.2.{first + k}",
            "0008|0060": "MR",
            "0020|000d": f"{uid}.1",
            "0020|000e": uid,
            "0020|0013": str(k),
            "0020|0032": "\\".join(
                f"{v:.6f}" for v in image.TransformIndexToPhysicalPoint((0, 0, k))
            ),
            "0020|0037": "\\".join(f"{v:.9f}" for v in (d[0], d[3], d[6], d[1], d[4], d[7])),
        }
        part = image[:, :, k]
        for tag, value in tags.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{first + k:03d}.dcm"))
        writer.Execute(part)


def assert_same_geometry(image, other):
    assert image.GetSize() == other.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(
            getattr(image, get)(), getattr(other, get)(), rtol=1e-5, atol=1e-5
        )
