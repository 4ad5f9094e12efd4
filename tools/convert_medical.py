"""Turns DICOM series and NIfTI volumes into the images/ and masks/ that src/train.py reads, and masks back into NIfTI.

    pip install -r requirements-medical.txt
    python tools/convert_medical.py --images scans --masks segmentations --output my_data
    python tools/convert_medical.py --predictions out --images scans --output segmented

A NIfTI file, or a folder with the files of one DICOM series, is a volume; its mask is the NIfTI file of the same name.
Slices are NumPy files with the volume's own values (of DICOM after the modality's rescaling, in CT Hounsfield units).
groups.txt names the volume of each slice, for train.py --groups: no volume is then in two parts.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from runtime import cli  # noqa: E402  the path must be set first
from runtime.errors import UsageError  # noqa: E402
from runtime.files import writable_folder  # noqa: E402
from runtime.options import option, whole_number  # noqa: E402

NIFTI = (".nii", ".nii.gz")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the axes of DICOM and of NIfTI


@dataclass(frozen=True, kw_only=True)
class MedicalConfig:
    """The settings of convert_medical.py."""

    images: str | None = option(None, "folder of volumes", metavar="DIR")
    masks: str | None = option(None, "folder of their masks, as NIfTI files of the same names", metavar="DIR")
    output: str | None = option(None, "the new folder", metavar="DIR")
    axis: int = option(2, "the volumes are cut across this axis, 0 to 2", whole_number(0, 2), metavar="N")
    predictions: str | None = option(
        None, "masks of inference.py, to be written as NIfTI with the places of --images", metavar="DIR"
    )


class Volume(NamedTuple):
    """A volume: values (X, Y, Z), and the affine map from voxels to millimeters, right, anterior, superior."""

    values: np.ndarray
    affine: np.ndarray


def stem_of(path: Path) -> str:
    """The name of a volume's file without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def find_volumes(folder: Path) -> dict[str, Path]:
    """NIfTI files and folders of DICOM files, by name. Raises UsageError where there are none, or two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.name.startswith(".") or not (path.is_dir() or path.name.endswith(NIFTI)):
            continue
        if stem_of(path) in found:
            raise UsageError(f"{path} and {found[stem_of(path)].name} have one name; rename one")
        found[stem_of(path)] = path
    if not found:
        raise UsageError(f"{folder}: there are no NIfTI files and no folders of DICOM files; name another one")
    return found


def read_volume(path: Path) -> Volume:
    """Reads a volume. Raises UsageError where the file is none, or has more than three dimensions."""
    volume = read_series(path) if path.is_dir() else read_nifti(path)
    if volume.values.ndim != 3:
        raise UsageError(f"{path} has {volume.values.ndim} dimensions, not 3; split it first")
    return volume


def read_nifti(path: Path) -> Volume:
    """Reads a NIfTI file, scaled as it says."""
    import nibabel

    try:
        image = nibabel.load(path)
        return Volume(np.asanyarray(image.dataobj), image.affine)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path} can't be read as NIfTI ({error}); replace the file") from None


def read_series(folder: Path) -> Volume:
    """Reads the files of one DICOM series, in the order of their places along the normal of the slices."""
    import pydicom
    from pydicom.pixels import apply_modality_lut

    slices = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        try:
            slices.append(pydicom.dcmread(path))
            slices[-1].pixel_array.shape  # noqa: B018  decodes the pixels
        except (pydicom.errors.InvalidDicomError, AttributeError, OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"{path} can't be read as a DICOM image ({error}); move it elsewhere") from None
    if not slices:
        raise UsageError(f"{folder} has no DICOM files; move it elsewhere")
    if len({(str(one.get("SeriesInstanceUID")), one.pixel_array.shape) for one in slices}) > 1:
        raise UsageError(f"{folder} has files of several series or sizes; put each into a folder of its own")
    across, down = np.array(slices[0].get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), float).reshape(2, 3)
    normal = np.cross(across, down)
    origins = [
        np.array(one.get("ImagePositionPatient", [0, 0, one.get("InstanceNumber") or 0]), float) for one in slices
    ]
    order = np.argsort([origin @ normal for origin in origins], kind="stable")
    slices, origins = [slices[i] for i in order], [origins[i] for i in order]
    rows, columns = map(float, slices[0].get("PixelSpacing", [1, 1]))
    thickness = float(slices[0].get("SliceThickness") or 1)
    step = (origins[-1] - origins[0]) / (len(slices) - 1) if len(slices) > 1 else normal * thickness
    affine = np.eye(4)
    affine[:3] = np.column_stack([across * columns, down * rows, step, origins[0]])
    values = np.stack([apply_modality_lut(one.pixel_array, one).T for one in slices], axis=-1)
    return Volume(values, LPS_TO_RAS @ affine)


def slices_of(values: np.ndarray, axis: int) -> np.ndarray:
    """A volume (X, Y, Z) as slices (N, rows, columns), a view."""
    return np.moveaxis(values, axis, 0).transpose(0, 2, 1)


def convert(name: str, path: Path, mask_path: Path | None, axis: int, folder: Path) -> list[str]:
    """Writes the slices of a volume and of its mask; returns the slices' names."""
    volume = read_volume(path)
    values = volume.values.astype(np.float32) if volume.values.dtype.kind == "f" else volume.values
    slices, masks = slices_of(values, axis), None
    if mask_path is not None:
        masks = slices_of(read_volume(mask_path).values, axis)
        if masks.shape != slices.shape:
            raise UsageError(f"{mask_path} has slices of {masks.shape}, {path} of {slices.shape}; they must be equal")
        if masks.min() < 0 or masks.max() > 254 or (masks != np.round(masks)).any():
            raise UsageError(f"{mask_path} holds other values than whole numbers from 0 to 254")
    names = [f"{name}_{number:04d}" for number in range(len(slices))]
    for number, one in enumerate(names):
        np.save(folder / f"images/{one}.npy", np.ascontiguousarray(slices[number]))
        if masks is not None:
            Image.fromarray(np.ascontiguousarray(masks[number]).astype(np.uint8)).save(folder / f"masks/{one}.png")
    return names


def convert_all(config: MedicalConfig, draft: Path) -> str:
    """Writes images/, masks/ and groups.txt; returns what they are, in words."""
    volumes, masks = find_volumes(Path(config.images)), {}
    if config.masks:
        masks = {stem_of(path): path for path in Path(config.masks).glob("*") if path.name.endswith(NIFTI)}
        lacking = sorted(volumes.keys() - masks.keys())
        if lacking:
            raise UsageError(f"{config.masks} has no NIfTI file for {', '.join(lacking[:5])}; move these elsewhere")
    for kind in ("images", "masks") if masks else ("images",):
        (draft / kind).mkdir()
    lines = []
    for name, path in tqdm(volumes.items(), unit="volume", disable=None):
        safe = name.replace(" ", "_")  # groups.txt separates by spaces
        lines += [f"{one} {safe}" for one in convert(safe, path, masks.get(name), config.axis, draft)]
    (draft / "groups.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{len(lines)} slices of {len(volumes)} volumes"


def restore_all(config: MedicalConfig, draft: Path) -> str:
    """Writes the predicted masks of volumes as NIfTI; returns what they are, in words."""
    import nibabel

    volumes, written = find_volumes(Path(config.images)), 0
    for name, path in tqdm(volumes.items(), unit="volume", disable=None):
        volume = read_volume(path)
        labels = np.zeros(volume.values.shape, np.uint8)
        files = [
            Path(config.predictions) / f"{name.replace(' ', '_')}_{number:04d}_mask.png"
            for number in range(volume.values.shape[config.axis])
        ]
        there = [file for file in files if file.is_file()]
        if not there:
            continue
        if len(there) < len(files):
            missing = next(file for file in files if not file.is_file())
            raise UsageError(f"{missing} is missing; segment all slices: inference.py --data_path <output>/images")
        for into, file in zip(slices_of(labels, config.axis), files):
            with Image.open(file, formats=("PNG",)) as image:
                found = np.asarray(image)
            if found.shape != into.shape:
                raise UsageError(f"{file} is not of the size of its slice; use the masks of inference.py as they are")
            # Of one class the mask is 0 and 255, of several their numbers.
            into[:] = found if image.mode == "P" else found > 0
        nibabel.save(nibabel.Nifti1Image(labels, volume.affine), draft / f"{name}.nii.gz")
        written += 1
    if not written:
        raise UsageError(f"{config.predictions} has no masks of slices of these volumes, such as NAME_0000_mask.png")
    return f"{written} of {len(volumes)} volumes"


def main(argv=None) -> None:
    """The command line: writes the new folder, whole or not at all, and says so in one line."""
    parser = cli.Parser("convert_medical.py", __doc__.splitlines()[0], MedicalConfig, folder="tools")
    config = MedicalConfig(**parser.parse_overrides(argv))
    for name in ("images", "output"):
        if getattr(config, name) is None:
            raise UsageError(f"--{name} is missing; see python tools/convert_medical.py --help")
    home = Path(config.output).resolve()
    if home.exists() and (home.is_file() or any(home.iterdir())):
        raise UsageError(f"{home} is not empty and is left alone; name another --output")
    draft = writable_folder(home.parent) / f".{home.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by a broken-off run
    draft.mkdir()
    try:
        said = (restore_all if config.predictions else convert_all)(config, draft)
        if home.exists():
            home.rmdir()  # empty, as seen above
        draft.rename(home)
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install -r requirements-medical.txt") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{home}: {said}")


if __name__ == "__main__":
    cli.run(main)
