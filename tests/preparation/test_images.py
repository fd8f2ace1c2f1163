"""Image files read and written, and each way in which a file can be wrong."""

import gzip
import locale
import os
import re
import struct
import subprocess

import numpy as np
import pytest
import SimpleITK
from image_files import assert_same_geometry, oblique, write_dicom

from utils.errors import UserError
from utils.preparation.images import (
    SUFFIXES,
    find_images,
    from_array,
    read_image,
    stem,
    suffix,
    to_array,
    write_image,
)


def refused(path, message, **options):
    with pytest.raises(UserError, match=message) as raised:
        read_image(path, **options)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_what_is_written_is_read_with_its_geometry_and_type(tmp_path, kind, dtype):
    image = oblique(dtype=dtype)
    write_image(tmp_path / f"a.b{kind}", image)
    found = read_image(tmp_path / f"a.b{kind}")
    assert found.GetPixelID() == image.GetPixelID()
    assert_same_geometry(found, image)
    assert np.array_equal(to_array(found), SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"a.b{kind}"} | ({"a.b.zraw"} if kind == ".mhd" else set())
    assert (stem(tmp_path / f"a.b{kind}"), suffix(tmp_path / f"a.b{kind}")) == ("a.b", kind)


def test_arrays_are_x_y_z():
    image = oblique((4, 3, 2))
    array = to_array(image)
    assert array.shape == (4, 3, 2)
    assert array[3, 1, 0] == image[3, 1, 0]
    assert_same_geometry(from_array(array, image), image)
    with pytest.raises(ValueError, match=r"expected voxels \(4, 3, 2\), got \(3, 4, 2\)"):
        from_array(array.transpose(1, 0, 2), image)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-30] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_ends_early_is_refused(tmp_path, kind, capfd):
    path = tmp_path / f"a{kind}"
    write_image(path, oblique((30, 30, 30)))
    cut(path)
    refused(path, r"damaged \(.* ends (early|after \d+ of \d+ bytes)\)")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_compressed_voxels_with_a_wrong_checksum_are_refused(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    write_image(path, oblique((30, 30, 30)))
    flip(path)
    refused(path, "damaged")


@pytest.mark.parametrize("kind", [".nrrd", ".mha", ".mhd"])
def test_voxels_without_compression_that_end_early_are_refused_in_one_line(tmp_path, kind, capfd):
    SimpleITK.WriteImage(oblique(), str(tmp_path / f"a{kind}"))
    cut(tmp_path / ("a.raw" if kind == ".mhd" else f"a{kind}"))
    refused(tmp_path / f"a{kind}", "not an image that can be read")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"no image at all " * 40, b"\x1f\x8b"])
@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".nrrd", ".mha", ".txt"])
def test_what_is_no_image_is_refused(tmp_path, kind, content):
    (tmp_path / f"a{kind}").write_bytes(content)
    refused(tmp_path / f"a{kind}", r"not an image that can be read|damaged")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "a.nii", "no such file or folder")
    with pytest.raises(UserError, match="no such file or folder"):
        find_images(tmp_path / "a")


def test_gzip_may_be_in_several_parts_padded_or_absent(tmp_path):
    write_image(tmp_path / "a.nii", oblique())
    data = (tmp_path / "a.nii").read_bytes()
    voxels = to_array(read_image(tmp_path / "a.nii"))
    parts = gzip.compress(data[:400]) + gzip.compress(data[400:])
    for content in (parts, gzip.compress(data) + bytes(512), data):
        (tmp_path / "b.nii.gz").write_bytes(content)
        assert np.array_equal(to_array(read_image(tmp_path / "b.nii.gz")), voxels)
    (tmp_path / "b.nii.gz").write_bytes(
        gzip.compress(data[:-100])
    )  # whole as gzip, but not as NIfTI
    refused(tmp_path / "b.nii.gz", rf"it ends after {len(data) - 100} of {len(data)} bytes")


def test_other_numbers_of_axes(tmp_path):
    frames = [oblique() + 1000 * k for k in range(3)]
    SimpleITK.WriteImage(SimpleITK.JoinSeries(frames), str(tmp_path / "film.nii.gz"))
    refused(tmp_path / "film.nii.gz", r"has 3 frames; choose one with --frame 0 … 2")
    refused(tmp_path / "film.nii.gz", r"has frames 0 … 2, not 3", frame=3)
    second = read_image(tmp_path / "film.nii.gz", 1)
    assert_same_geometry(second, frames[1])
    assert np.array_equal(to_array(second), to_array(frames[1]))

    SimpleITK.WriteImage(SimpleITK.JoinSeries(frames[:1]), str(tmp_path / "one.nrrd"))
    assert_same_geometry(read_image(tmp_path / "one.nrrd"), frames[0])
    write_image(tmp_path / "three.mha", frames[0])
    refused(tmp_path / "three.mha", "has one frame, so there is no frame 2", frame=2)

    flat = SimpleITK.GetImageFromArray(np.arange(12, dtype=np.int16).reshape(3, 4))
    SimpleITK.WriteImage(flat, str(tmp_path / "flat.nii"))
    assert (
        to_array(read_image(tmp_path / "flat.nii"))[:, :, 0].tolist()
        == np.arange(12).reshape(3, 4).T.tolist()
    )


def test_voxels_that_are_no_numbers_are_refused(tmp_path):
    path = str(tmp_path / "a.nrrd")
    SimpleITK.WriteImage(SimpleITK.Compose([oblique(), oblique()]), path)
    refused(path, "has 2 values a voxel")
    SimpleITK.WriteImage(
        SimpleITK.Cast(oblique(), SimpleITK.sitkComplexFloat32), str(tmp_path / "a.nii")
    )
    refused(tmp_path / "a.nii", "vector or complex image")
    image = oblique(dtype=np.float32)
    image[1, 2, 3] = float("nan")
    image[3, 2, 1] = float("inf")
    SimpleITK.WriteImage(image, path)
    refused(path, "2 voxels that are NaN or infinite")


def test_a_sheared_affine_is_refused(tmp_path):
    write_image(tmp_path / "a.nii", oblique())
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<hh", data, 252, 0, 1)  # no qform, an sform
    struct.pack_into("<f", data, 280, 0.8)
    (tmp_path / "a.nii").write_bytes(data)
    refused(tmp_path / "a.nii", "its axes are not at right angles")


def test_a_geometry_that_is_none_is_refused(tmp_path):
    write_image(tmp_path / "a.mhd", oblique())
    text = (tmp_path / "a.mhd").read_text()
    turned = re.sub(
        r"^TransformMatrix .*$", "TransformMatrix = 1 0 0 0 2 0 0 0 1", text, flags=re.MULTILINE
    )
    (tmp_path / "a.mhd").write_text(turned)
    refused(tmp_path / "a.mhd", "its spacing, origin or direction are no numbers")

    write_image(tmp_path / "a.nii", oblique())
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<f", data, 268, float("nan"))  # the origin
    struct.pack_into("<f", data, 292, float("nan"))
    (tmp_path / "a.nii").write_bytes(data)
    refused(tmp_path / "a.nii", "its spacing, origin or direction are no numbers")


def test_a_dicom_series_is_one_image(tmp_path):
    image = oblique()
    write_dicom(tmp_path / "study" / "series", image)
    for path in list((tmp_path / "study" / "series").iterdir())[:3]:
        path.rename(path.with_suffix(""))
    (found,) = find_images(tmp_path)
    assert found == tmp_path / "study" / "series"
    assert (stem(found), suffix(found)) == ("series", "")
    assert_same_geometry(read_image(found), image)
    assert np.array_equal(to_array(read_image(found)), to_array(image))
    refused(next(found.glob("*.dcm")), "one slice of a DICOM series; name its folder")


def test_reading_dicom_leaves_the_locale_alone(tmp_path):
    """GDCM sets the C locale, in which Python reads and writes ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    write_dicom(tmp_path / "series", oblique())
    locale.setlocale(locale.LC_ALL, before)
    read_image(tmp_path / "series")
    assert locale.setlocale(locale.LC_ALL) == before


def test_dicom_folders_that_are_no_series_are_refused(tmp_path):
    write_dicom(tmp_path / "gap", oblique(), skip=(2,))
    refused(
        tmp_path / "gap",
        r"not evenly spaced \(6 mm from slice 1 to 2, 3 mm elsewhere\): is one missing\?",
    )
    write_dicom(tmp_path / "two", oblique())
    write_dicom(tmp_path / "two", oblique(), uid="1.2.3.4", first=50)
    refused(
        tmp_path / "two", r"2 DICOM series, .*: 1\.2\.3\.4 \(5 files\), 1\.2\.826\S* \(5 files\)"
    )
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "a folder without a DICOM series")


def test_images_are_found_below_a_folder(tmp_path):
    for name in (
        "b.nii.gz",
        "a.NII",
        "x/c.mha",
        "x/c.zraw",
        ".hidden/d.nii",
        "._b.nii.gz",
        "notes.txt",
        "e.h5",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == [
        "a.NII",
        "b.nii.gz",
        "x/c.mha",
    ]
    assert find_images(tmp_path, (".h5",)) == [tmp_path / "e.h5"]
    assert find_images(tmp_path / "notes.txt") == [
        tmp_path / "notes.txt"
    ]  # whoever reads it says what it is
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no image in this folder; \.nii, .* and DICOM series are read"
    ):
        find_images(tmp_path / "empty")


def test_writing_refuses_what_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"a\.png: images are written as \.nii, "):
        write_image(tmp_path / "a.png", oblique())
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "absent" / "a.nii", oblique())


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can be mounted by root alone, outside of most containers")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_full_disk_leaves_the_old_file(small_disk, kind, capfd):
    path = small_disk / f"a{kind}"
    write_image(path, oblique((4, 4, 4)))
    before = {other.name: other.read_bytes() for other in small_disk.iterdir()}
    with pytest.raises(UserError, match=rf"a{kind}: cannot be written \(the disk is full\)"):
        write_image(path, oblique((80, 80, 40)))
    assert {other.name: other.read_bytes() for other in small_disk.iterdir()} == before
    assert capfd.readouterr() == ("", "")
    assert os.listdir(small_disk.parent) == ["disk"]
