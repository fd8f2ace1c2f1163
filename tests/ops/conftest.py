import os
from pathlib import Path

import h5py
import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    """Every device that this machine has."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def left_atria():
    """Centre-near crops of four real left-atrium labels, ``(4, 112, 112, 80)`` uint8."""
    root = Path(os.environ.get("DATA_ROOT", Path(__file__).resolve().parents[2] / "data"))
    files = sorted((root / "LA").glob("**/mri_norm2.h5"))[:4]
    if len(files) < 4:
        pytest.skip(f"no left-atrium cases under {root / 'LA'}; set DATA_ROOT")
    labels = []
    for file in files:
        with h5py.File(file) as case:
            label = torch.from_numpy(case["label"][:])
        corner = [(extent - size) // 2 for extent, size in zip(label.shape, (112, 112, 80), strict=True)]
        labels.append(label[tuple(slice(c, c + size) for c, size in zip(corner, (112, 112, 80), strict=True))])
    return torch.stack(labels)
