"""Small files in the formats that the data sets' own sites hand out, as they unpack; arrays are (X,
Y, Z).
"""

import numpy as np
import scipy.io
import SimpleITK
from image_files import as_image


def write(path, array, *geometry):
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(as_image(array, *geometry), str(path), useCompression=True)
    return path


def solid(rng, shape, radius=0.3):
    """A bright ellipsoid with a dent, unlike its own mirror images, in noise: image int16 and mask
    uint8.
    """
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, extent) for extent in shape), indexing="ij"))
    centre = rng.uniform(-0.2, 0.2, 3)[:, None, None, None]
    scaled = (grid - centre) / (radius * np.array([2.4, 1.6, 2.0]))[:, None, None, None]
    mask = ((scaled**2).sum(0) < 1) & ~((scaled > 0.05).all(0))
    image = 500 * mask + rng.integers(0, 400, shape) + 50
    return image.astype(np.int16), mask.astype(np.uint8)


def write_la(download, case, image, mask):
    """A case of the 2018 Atria Segmentation Challenge: NRRD, label 255."""
    for name, array in (("lgemri", image), ("laendo", mask * np.uint8(255))):
        write(download / "Training Set" / case / f"{name}.nrrd", array, (0.625, 0.625, 0.625))


def write_acdc(download, patient, frames, label, ed=1, es=12, spacing=(1.5, 1.5, 10.0)):
    """A patient of ACDC: `frames` are the volumes at end diastole and end systole, `label` that of
    both.
    """
    folder = download / "training" / patient
    for number, image in zip((ed, es), frames, strict=True):
        write(folder / f"{patient}_frame{number:02d}.nii.gz", image, spacing)
        write(folder / f"{patient}_frame{number:02d}_gt.nii.gz", label, spacing)
    (folder / "Info.cfg").write_text(
        f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
    )
    (folder / f"{patient}_4d.nii.gz").write_bytes(b"never read")


def write_dicom(folder, hounsfield, spacing, uid="1"):
    """A CT series of one DICOM file a slice, from the feet up, but numbered and named from the head
    down.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    count = hounsfield.shape[2]
    for k in range(count):
        image = SimpleITK.GetImageFromArray(
            np.ascontiguousarray(hounsfield[:, :, k].T.astype(np.int16))
        )
        image.SetSpacing(spacing[:2])
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.826.0.1.{uid}.{k + 1}",
            "0020|000d": f"1.2.826.0.2.{uid}",
            "0020|000e": f"1.2.826.0.3.{uid}",
            "0020|0013": str(count - k),
            "0020|0032": f"-100\\-80\\{k * spacing[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": str(spacing[2]),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"1-{count - k:03d}.dcm"))
        writer.Execute(image)


def write_pancreas(download, number, hounsfield, mask, spacing, flips=()):
    """A case of Pancreas-CT: a DICOM series, and a label whose file reverses the axes `flips`, with
    a header that says nothing of it."""
    study = (
        download
        / "manifest"
        / "Pancreas-CT"
        / f"PANCREAS_{number:04d}"
        / "11-24-2015-PANCREAS-Pancreas-18957"
    )
    write_dicom(study / "Pancreas-99667", hounsfield, spacing, str(number))
    label = download / "TCIA_pancreas_labels-02-05-2017" / f"label{number:04d}.nii.gz"
    write(label, np.flip(mask, flips), spacing, (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


def write_brats(download, subject, images, label, grade="HGG"):
    """A subject of BraTS 2019: `images` by modality; label 0, 1, 2 and 4."""
    folder = download / "MICCAI_BraTS_2019_Data_Training" / grade / subject
    for name, array in {**images, "seg": label}.items():
        write(folder / f"{subject}_{name}.nii.gz", array, (1.0, 1.0, 1.0), (0.0, -239.0, 0.0))


def write_york(download, number, images, contours):
    """A subject of York University: `images` `(y, x, level, time)`, `contours` a dict from
    `(level, time)` to a pair of 32 points `(x, y)`, the first pixel's centre at 1, of endocardium
    and epicardium; nothing drawn elsewhere.
    """
    drawn = np.empty(images.shape[2:], dtype=object)
    for place in np.ndindex(drawn.shape):
        pair = contours.get(place)
        drawn[place] = (
            np.array([[-99999.0]]) if pair is None else np.vstack([pair[0], [[0, 0]], pair[1]])
        )
    for folder, name, key, value in (
        ("mrimages", f"sol_yxzt_pat{number}.mat", "sol_yxzt", images),
        ("manual_seg", f"manual_seg_32points_pat{number}.mat", "manual_seg_32points", drawn),
    ):
        (download / folder).mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(download / folder / name, {key: value}, do_compression=True)
