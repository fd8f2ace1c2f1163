"""The smallest data and settings that the tests train on."""

from pathlib import Path

import h5py
import numpy as np
import torch
from scipy import ndimage

# command lines of a run that takes seconds, on the data sets below; `[*LA, *BOTH, …]`
LA = "--gpu -1 --patch 32 16 16 --n_filters 2 --labelnum 3 --precision fp32".split()
ACDC = "--dataset ACDC --gpu -1 --patch 32 32 --n_filters 2 --labelnum 2 --precision fp32".split()
BOTH = "--labeled_bs 2 --unlabeled_bs 2".split()
EPOCHS = "--pretrain_epochs 1 --selftrain_epochs 1".split()
# what ends each training script after a few steps
SHORT = {
    "train_supervised": "--max_iterations 2".split(),
    "train_dmd": "--max_iterations 2".split(),
    "train_dtml": "--max_iterations 2".split(),
    "train_ugmcl": "--max_iterations 2 --passes 1".split(),
    "train_cml": "--pretrain_iterations 1 --max_iterations 1".split(),
    "train_cps": "--max_iterations 2".split(),
    "train_dan": "--max_iterations 2 --discriminator_filters 4".split(),
    "train_entropy": "--max_iterations 2".split(),
    "train_vat": "--max_iterations 2".split(),
    "train_pseudo": "--max_iterations 2".split(),
    "train_unimatch": "--max_iterations 2 --threshold 0.5".split(),
    "train_admt": "--max_iterations 2 --threshold 0.5".split(),
    "train_dtc": "--max_iterations 2".split(),
    "train_mcnet": "--max_iterations 2".split(),
    "train_urpc": "--max_iterations 2".split(),
    "train_sassnet": "--max_iterations 2 --discriminator_filters 4".split(),
    "train_bcp": "--pretrain_iterations 1 --max_iterations 1".split(),
    "train_ssnet": "--max_iterations 2".split(),
    "train_mcf": "--max_iterations 2".split(),
    "train_coranet": EPOCHS,
    "train_coranet_ovr": EPOCHS,
    "train_coranet_uncertainty": [*EPOCHS, "--looks", "2"],
}

SHORT |= {
    f"train_{method}": "--max_iterations 2".split()
    for method in ("mt", "ict", "tcse", "pi", "tempens")
}
SHORT["train_uamt"] = "--max_iterations 2 --passes 1".split()

FOLDER = "2018LA_Seg_Training Set"


def write_case(root, name, image, label):
    """One h5 file of LA's layout; `label=None` leaves the key out."""
    path = Path(root) / FOLDER / name / "mri_norm2.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"] = image
        if label is not None:
            file["label"] = label
    return path


def blob(rng, shape):
    """A bright ball at a random place in noise, and its label."""
    centre = [rng.uniform(0.35, 0.65) * extent for extent in shape]
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    label = (distance < 0.3 * min(shape)).astype(np.uint8)
    return (2.0 * label + 0.3 * rng.standard_normal(shape) - 0.5).astype(np.float32), label


def make_tiny_la(root):
    """Six training and two test volumes of about 40×36×20 voxels in LA's layout."""
    rng = np.random.default_rng(0)
    names = [f"CASE{i:02d}" for i in range(8)]
    for i, name in enumerate(names):
        write_case(root, name, *blob(rng, (40 + i % 3, 36 + i % 2, 20)))
    (root / "train.list").write_text("\n".join(names[:6]) + "\n")
    (root / "test.list").write_text("\n".join(names[6:]) + "\n")


def make_tiny_acdc(root):
    """Four training, one validation and two test patients of three slices 36×32 in ACDC's layout, 4
    classes.
    """
    rng = np.random.default_rng(0)
    lists = {"train_slices": [], "train": [], "val": [], "test": []}
    (root / "data" / "slices").mkdir(parents=True)

    def write(path, image, label):
        with h5py.File(path, "w") as file:
            file["image"], file["label"] = image, label

    for patient in range(1, 8):
        split = "train" if patient <= 4 else "val" if patient == 5 else "test"
        name = f"patient{patient:03d}_frame01"
        image, label = blob(rng, (12, 36, 32))
        image, label = (
            image[4:7],
            label[4:7] + (np.arange(32) > 12) * label[4:7] + (np.arange(32) > 18) * label[4:7],
        )
        write(root / "data" / f"{name}.h5", image, label)
        lists[split].append(name)
        for k in range(3 if split == "train" else 0):
            write(root / "data" / "slices" / f"{name}_slice_{k + 1}.h5", image[k], label[k])
            lists["train_slices"].append(f"{name}_slice_{k + 1}")
    for split, names in lists.items():
        (root / f"{split}.list").write_text("\n".join(names) + "\n")


def ball(shape, centre, radius):
    """A bool mask `shape` of the voxels within `radius` of `centre`, in 2-D or 3-D."""
    grid = np.indices(shape).reshape(len(shape), -1).T
    distance = np.linalg.norm(grid - np.array(centre), axis=1)
    return (distance <= radius).reshape(shape)


def slices_by_scipy(network, volume, patch):
    """Labels of a volume by the field's loop of slices: image and labels are resized by scipy."""
    labels = np.zeros(volume.shape, np.uint8)
    x, y, slices = volume.shape
    for k in range(slices):
        small = ndimage.zoom(volume[..., k], (patch[0] / x, patch[1] / y), order=0)
        with torch.no_grad():
            pred = network(torch.from_numpy(small)[None, None]).argmax(1)[0]
        labels[..., k] = ndimage.zoom(pred.numpy(), (x / patch[0], y / patch[1]), order=0)
    return labels
