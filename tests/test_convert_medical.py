"""tools/convert_medical.py on files that pydicom and nibabel come with."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.testing import data_path
from PIL import Image
from pydicom.data import get_testdata_file

from helpers import SRC, TINY, assert_one_error, rows, run_ok, run_script

TOOL = str(SRC.parent / "tools/convert_medical.py")
ANATOMICAL = Path(data_path) / "anatomical.nii"  # 33 x 41 x 25 voxels of int16
CT_PLACE = np.array([[-0.661468, 0, 0, 100], [0, -0.661468, 0, 80], [0, 0, 7.5, -5], [0, 0, 0, 1]])
flags = ("--images", "scans", "--output")


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder with a NIfTI volume, its mask, and a DICOM series of three CT slices whose files are out of order."""
    for name in ("scans/ct", "segmentations"):
        (tmp_path / name).mkdir(parents=True)
    image = nibabel.load(ANATOMICAL)
    image = nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "scans/brain 1.nii.gz")
    values = np.asanyarray(image.dataobj)
    mask = nibabel.Nifti1Image((values > np.percentile(values, 60)).astype(np.uint8), image.affine)
    nibabel.save(mask, tmp_path / "segmentations/brain 1.nii.gz")
    for number, height in enumerate((10.0, -5.0, 2.5)):
        one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        one.ImagePositionPatient = [-100.0, -80.0, height]
        pixels = one.pixel_array.copy()
        pixels[0, 1] = 1000 + number
        one.PixelData = pixels.tobytes()
        one.save_as(tmp_path / f"scans/ct/{number}.dcm")
    ct = nibabel.Nifti1Image(np.zeros((128, 128, 3), np.uint8), CT_PLACE)
    nibabel.save(ct, tmp_path / "segmentations/ct.nii")
    return tmp_path


def test_volumes_become_slices_with_groups(scans):
    said = run_ok(TOOL, *flags, "data", "--masks", "segmentations", cwd=scans)
    assert "28 slices of 2 volumes" in said
    image = nibabel.load(ANATOMICAL)
    values = np.asanyarray(image.dataobj)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = (values[:, :, 7].T.clip(low, high) - low) / (high - low) * 65535
    assert np.abs(np.load(scans / "data/images/brain_1_z0007.npy") - expected).max() < 2
    mask = np.asarray(Image.open(scans / "data/masks/brain_1_z0007.png"))
    assert np.array_equal(mask, (values[:, :, 7] > np.percentile(values, 60)).T)
    lines = (scans / "data/groups.txt").read_text().splitlines()
    assert lines[0] == "brain_1_z0000 brain_1"
    assert len(lines) == 28
    run_ok(TOOL, *flags, "ct", "--low", -1000, "--high", 1000, cwd=scans)
    # In order of their places: the second file, then the third, then the first.
    one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for number, marked in enumerate((1001, 1002, 1000)):
        hounsfield = marked * one.RescaleSlope + one.RescaleIntercept
        slice_ = np.load(scans / f"ct/images/ct_z000{number}.npy")
        assert slice_[0, 1] == pytest.approx((hounsfield + 1000) / 2000 * 65535, abs=1)
    run_ok(TOOL, *flags, "sagittal", "--axis", 0, cwd=scans)
    expected = (values[32].T.clip(low, high) - low) / (high - low) * 65535
    assert np.abs(np.load(scans / "sagittal/images/brain_1_x0032.npy") - expected).max() < 2


def test_masks_are_turned_to_their_volumes(scans):
    path = scans / "segmentations/brain 1.nii.gz"
    run_ok(TOOL, *flags, "first", "--masks", "segmentations", cwd=scans)
    nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), path)
    turned = nibabel.load(path)
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = turned.shape[0] - 1
    values = np.asanyarray(turned.dataobj)[::-1]
    nibabel.save(nibabel.Nifti1Image(values, turned.affine @ flip), path)
    run_ok(TOOL, *flags, "second", "--masks", "segmentations", cwd=scans)
    for file in (scans / "first/masks").iterdir():
        assert file.read_bytes() == (scans / "second/masks" / file.name).read_bytes()


def test_from_scans_to_predicted_volumes(scans):
    rng = np.random.default_rng(0)
    for number in range(2, 10):  # each a patient
        for folder, noise in (("scans", 3000), ("segmentations", 1)):
            image = nibabel.load(scans / f"{folder}/brain 1.nii.gz")
            values = np.roll(np.asanyarray(image.dataobj), 3 * number, axis=number % 2)
            values = (values + rng.integers(0, noise, values.shape)).astype(values.dtype)
            image = nibabel.Nifti1Image(values, image.affine, image.header)
            nibabel.save(image, scans / f"{folder}/brain {number}.nii.gz")
    run_ok(TOOL, *flags, "data", "--masks", "segmentations", cwd=scans)
    channels = ("--channels", 1, "--groups", "data/groups.txt")
    said = run_ok("train.py", "--data_path", "data", *channels, "--epochs", 2, *TINY, cwd=scans)
    assert "groups data/groups.txt" in said
    model = ("--model_path", "saved_models/tiny_best.pth")
    run_ok("inference.py", *model, "--data_path", "data/images", "--subset", "all", "--output_path", "out", cwd=scans)
    assert len(rows(scans / "logs/tiny_inference_log.csv")) == 228
    said = run_ok(TOOL, *flags, "back", "--predictions", "out", cwd=scans)
    assert "10 of 10 volumes" in said
    found, source = nibabel.load(scans / "back/brain_3.nii.gz"), nibabel.load(ANATOMICAL)
    assert found.shape == source.shape
    assert np.array_equal(found.affine, source.affine)
    assert (found.header["qform_code"], found.header["sform_code"]) == (1, 2)
    assert (found.header.get_xyzt_units(), found.get_data_dtype()) == (("mm", "sec"), np.uint8)
    mask = np.asarray(Image.open(scans / "out/brain_3_z0009_mask.png")) > 0
    assert np.array_equal(np.asanyarray(found.dataobj)[:, :, 9], mask.T)
    ct = nibabel.load(scans / "back/ct.nii.gz")
    one = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    place = ct.affine @ [0, 0, 0, 1]
    assert place[:3] == pytest.approx([100.0, 80.0, -5.0])  # DICOM's left and posterior are NIfTI's right and anterior
    assert ct.header.get_zooms()[0] == pytest.approx(float(one.PixelSpacing[1]))
    assert ct.header.get_zooms()[2] == pytest.approx(7.5)
    (scans / "out/brain_3_z0009_mask.png").unlink()
    done = run_script(TOOL, *flags, "again", "--predictions", "out", cwd=scans)
    assert_one_error(done, "brain_3_z0009_mask.png is missing")


def test_bad_volumes_are_left_out_and_named(scans):
    def left_out(*words: str, more: tuple = ()) -> None:
        done = run_script(TOOL, *flags, "data", *more, cwd=scans)
        assert_one_error(done, "volumes left out (1)", *words, status=1)
        assert len((scans / "data/groups.txt").read_text().splitlines()) in (3, 25)
        shutil.rmtree(scans / "data")

    nibabel.save(nibabel.Nifti1Image(np.zeros((128, 128, 2), np.uint8), CT_PLACE), scans / "segmentations/ct.nii")
    left_out("ct.nii lies elsewhere than its volume", more=("--masks", "segmentations"))
    (scans / "scans/ct/notes.txt").write_text("no image")
    left_out("notes.txt can't be read as a DICOM image")
    (scans / "scans/ct/notes.txt").unlink()
    third = scans / "scans/ct/2.dcm"
    kept = third.read_bytes()
    for place, words in (([-100.0, -80.0, -1.0], "not at equal distances"), (None, "has no place")):
        one = pydicom.dcmread(third)
        one.ImagePositionPatient = place
        one.save_as(third)
        left_out(words)
    third.write_bytes(kept)
    shutil.rmtree(scans / "scans/ct")
    for content, words in (
        ((Path(data_path) / "functional.nii").read_bytes(), "is no volume of numbers in three dimensions"),
        (b"no volume", "can't be read as NIfTI"),
        (nibabel.Nifti1Image(np.full((5, 5, 5), np.nan, np.float32), np.eye(4)).to_bytes(), "has no finite value"),
    ):
        (scans / "scans/time.nii").write_bytes(content)
        left_out("time.nii", words)


def test_bad_folders_are_one_error_and_leave_nothing(scans):
    def error(*words: str, more: tuple = ()) -> None:
        assert_one_error(run_script(TOOL, *flags, "data", *more, cwd=scans), *words)
        assert not (scans / "data").exists()
        assert not list(scans.glob(".*"))

    (scans / "segmentations/ct.nii").unlink()
    error("has no NIfTI file for ct", more=("--masks", "segmentations"))
    (scans / "scans/brain_1.nii").write_bytes(ANATOMICAL.read_bytes())
    error("have one name, brain_1")
    done = run_script(TOOL, "--images", "empty", "--output", "data", cwd=scans)
    assert_one_error(done, "there are no NIfTI or DICOM")


def test_channels_of_nnunet_share_a_mask(scans):
    path = scans / "scans/brain 1.nii.gz"
    shutil.copy(path, scans / "scans/brain 1_0001.nii.gz")
    path.rename(scans / "scans/brain 1_0000.nii.gz")
    said = run_ok(TOOL, *flags, "data", "--masks", "segmentations", cwd=scans)
    assert "53 slices of 3 volumes" in said
    masks = [(scans / f"data/masks/brain_1_000{channel}_z0007.png").read_bytes() for channel in (0, 1)]
    assert masks[0] == masks[1]


def test_single_dicom_files_are_volumes_of_one_slice(scans, tmp_path):
    (tmp_path / "xray").mkdir()
    for name in ("CT_small.dcm", "JPEGLSNearLossless_08.dcm"):  # the second is compressed
        shutil.copy(get_testdata_file(name), tmp_path / "xray")
    said = run_ok(TOOL, "--images", "xray", "--output", "data", cwd=tmp_path)
    assert "2 slices of 2 volumes" in said
    assert np.load(tmp_path / "data/images/CT_small_z0000.npy").shape == (128, 128)
