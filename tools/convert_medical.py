"""Turns DICOM series and NIfTI volumes into the images/ and masks/ that src/train.py reads, and masks back into NIfTI.

    pip install -r requirements-medical.txt
    python tools/convert_medical.py --images scans --masks segmentations --output my_data
    python tools/convert_medical.py --predictions out --images scans --output segmented

A NIfTI file, a DICOM file of one image, or a folder with the files of one DICOM series, is a volume; its mask is the
NIfTI file of the same name, or that without nnU-Net's number of the channel: case_0000.nii.gz has case.nii.gz.
Slices are NumPy files of 16 bits: 0 to 65535 are the volume's percentiles 0.5 to 99.5, or --low and --high (in CT
Hounsfield units). groups.txt names the volume of each slice, for train.py --groups: no volume is then in two parts.
"""

import re
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from runtime import cli  # noqa: E402  the path must be set first
from runtime.errors import RunError, UsageError  # noqa: E402
from runtime.files import writable_folder  # noqa: E402
from runtime.options import option, whole_number  # noqa: E402

ENDINGS = (".nii", ".nii.gz", ".dcm")
ORIENTATION = "ImageOrientationPatient"
# What the libraries raise on files that are damaged or lack entries.
FAULTS = (
    AttributeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    OverflowError,
    zlib.error,
)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # the axes of DICOM and of NIfTI


@dataclass(frozen=True, kw_only=True)
class MedicalConfig:
    """The settings of convert_medical.py."""

    images: str | None = option(None, "folder of volumes", metavar="DIR")
    masks: str | None = option(None, "folder of their masks, as NIfTI files of the same names", metavar="DIR")
    output: str | None = option(None, "the new folder", metavar="DIR")
    axis: int = option(2, "the volumes are cut across this axis, 0 to 2", whole_number(0, 2), metavar="N")
    low: float | None = option(
        None, "value that becomes black; by default percentile 0.5 of each volume", float, metavar="VALUE"
    )
    high: float | None = option(
        None, "value that becomes white; by default percentile 99.5 of each volume", float, metavar="VALUE"
    )
    predictions: str | None = option(
        None, "masks of inference.py, to be written as NIfTI with the places of --images", metavar="DIR"
    )


class Volume(NamedTuple):
    """Values (X, Y, Z), the affine map from voxels to millimeters (right, anterior, superior), and NIfTI header."""

    values: np.ndarray
    affine: np.ndarray
    header: Any = None


def name_of(path: Path) -> str:
    """The name of a volume in the names of its slices: that of the file without ending, spaces and commas."""
    return re.sub(r"[\s,]+", "_", re.sub(r"\.(nii(\.gz)?|dcm)$", "", path.name, flags=re.IGNORECASE))


def find_volumes(folder: Path) -> dict[str, Path]:
    """NIfTI and DICOM files and folders of DICOM files, by name. Raises UsageError: none, or two of one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.name.startswith(".") or not (path.is_dir() or path.name.lower().endswith(ENDINGS)):
            continue
        name = name_of(path)
        if name in found:
            raise UsageError(f"{path} and {found[name].name} have one name, {name}; rename one")
        found[name] = path
    if not found:
        raise UsageError(f"{folder}: there are no NIfTI or DICOM files and no folders of DICOM files; name another one")
    return found


def read_volume(path: Path) -> Volume:
    """Reads a volume. Raises UsageError where the file is none, or has more than three dimensions."""
    is_nifti = path.is_file() and path.suffix.lower() != ".dcm"
    volume = read_nifti(path) if is_nifti else read_series(path)
    values = volume.values
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or values.dtype.kind not in "buif" or 0 in values.shape:
        raise UsageError(f"{path} is no volume of numbers in three dimensions ({values.shape}, {values.dtype})")
    if not np.isfinite(values).any():
        raise UsageError(f"{path} has no finite value")
    return volume._replace(values=values)


def read_nifti(path: Path) -> Volume:
    """Reads a NIfTI file, scaled as it says."""
    import nibabel

    try:
        image = nibabel.load(path)
        return Volume(np.asanyarray(image.dataobj), image.affine, image.header)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        zlib.error,
        *FAULTS,
    ) as error:
        raise UsageError(f"{path} can't be read as NIfTI ({error}); replace the file") from None


def read_slice(path: Path):
    """A DICOM file and its values after the modality's rescaling, float32 (rows, columns)."""
    import pydicom
    from pydicom.pixels import apply_modality_lut

    try:
        one = pydicom.dcmread(path)
        values = np.asarray(apply_modality_lut(one.pixel_array, one), np.float32)
    except (pydicom.errors.InvalidDicomError, *FAULTS) as error:
        raise UsageError(f"{path} can't be read as a DICOM image ({error}); move it elsewhere") from None
    if values.ndim != 2 or "MONOCHROME" not in one.get("PhotometricInterpretation", "MONOCHROME2"):
        raise UsageError(f"{path} is no gray image of one frame; move it elsewhere")
    del one.PixelData
    return one, -values if one.get("PhotometricInterpretation") == "MONOCHROME1" else values


def read_series(folder: Path) -> Volume:
    """Reads a DICOM file, or the files of one series: a stack of parallel slices at equal distances.

    Raises:
        UsageError: a file can't be read, or they are no such stack.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files = [folder] if folder.is_file() else files
    slices = [read_slice(path) for path in files]
    if not slices:
        raise UsageError(f"{folder} has no DICOM files; move it elsewhere")

    def numbers(one, tag: str, count: int) -> tuple[float, ...] | None:
        value = one.get(tag)
        return tuple(map(float, value)) if value and len(value) == count else None

    kinds = {
        (str(one.get("SeriesInstanceUID")), values.shape, numbers(one, "PixelSpacing", 2), numbers(one, ORIENTATION, 6))
        for one, values in slices
    }
    if len(kinds) > 1:
        raise UsageError(
            f"{folder} has files of several series, sizes or orientations; put each into a folder of its own"
        )
    _, _, spacing, orientation = kinds.pop()
    across, down = np.array(orientation or [1, 0, 0, 0, 1, 0]).reshape(2, 3)
    normal, places = np.cross(across, down), [numbers(one, "ImagePositionPatient", 3) for one, _ in slices]
    if None in places:
        if any(places):
            raise UsageError(f"{files[places.index(None)]} has no place (ImagePositionPatient), but others have one")
        places = [(0.0, 0.0, float(one.get("InstanceNumber") or number)) for number, (one, _) in enumerate(slices)]
    order = np.argsort([np.array(place) @ normal for place in places], kind="stable")
    origins = np.array(places)[order]
    steps = np.diff(origins, axis=0)
    step = steps.mean(axis=0) if len(steps) else normal * float(slices[0][0].get("SliceThickness") or 1)
    if len(steps) and (np.abs(steps - step).max() > 0.02 * np.linalg.norm(step) or not step.any()):
        raise UsageError(f"{folder}: its slices are not at equal distances, each once; some may be missing")
    rows, columns = spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3] = np.column_stack([across * columns, down * rows, step, origins[0]])
    return Volume(np.stack([slices[i][1].T for i in order], axis=-1), LPS_TO_RAS @ affine)


def in_place_of(mask: Volume, volume: Volume, path: Path) -> np.ndarray:
    """The values of a mask in the order of the volume's voxels. Raises UsageError where they lie elsewhere."""
    from nibabel import orientations

    ways = [orientations.io_orientation(one.affine) for one in (mask, volume)]
    turn = orientations.ornt_transform(*ways)
    affine = mask.affine @ orientations.inv_ornt_aff(turn, mask.values.shape)
    values = orientations.apply_orientation(mask.values, turn)
    size = np.abs(volume.affine[:3, :3]).max()
    if values.shape != volume.values.shape or not np.allclose(affine, volume.affine, atol=0.05 * size):
        raise UsageError(f"{path} lies elsewhere than its volume ({values.shape}, {volume.values.shape}); resample it")
    return values


def slices_of(values: np.ndarray, axis: int) -> np.ndarray:
    """A volume (X, Y, Z) as slices (N, rows, columns), a view."""
    return np.moveaxis(values, axis, 0).transpose(0, 2, 1)


def sixteen_bits(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Values as uint16, 0 at `low` and 65535 at `high`; by default at percentiles 0.5 and 99.5."""
    limits = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    low, high = (limit if given is None else given for given, limit in zip((low, high), limits))
    scale = 65535 / (high - low) if high > low else 0.0
    shares = (np.nan_to_num(values.astype(np.float32), nan=low).clip(low, high) - np.float32(low)) * np.float32(scale)
    return np.round(shares).clip(0, 65535).astype(np.uint16)


def slice_name(name: str, axis: int, number: int) -> str:
    """The name of a slice: it says across which axis, so that masks go back into the right places."""
    return f"{name}_{'xyz'[axis]}{number:04d}"


def convert(name: str, path: Path, mask_path: Path | None, config: MedicalConfig, folder: Path) -> list[str]:
    """Writes the slices of a volume and of its mask; returns the slices' names."""
    volume, masks = read_volume(path), None
    if mask_path is not None:
        mask = in_place_of(read_volume(mask_path), volume, mask_path)
        if mask.min() < 0 or mask.max() > 254 or (mask != np.round(mask)).any():
            raise UsageError(f"{mask_path} holds other values than whole numbers from 0 to 254")
        masks = slices_of(mask, config.axis)
    slices = slices_of(sixteen_bits(volume.values, config.low, config.high), config.axis)
    names = [slice_name(name, config.axis, number) for number in range(len(slices))]
    for number, one in enumerate(names):
        np.save(folder / f"images/{one}.npy", np.ascontiguousarray(slices[number]))
        if masks is not None:
            Image.fromarray(np.ascontiguousarray(masks[number]).astype(np.uint8)).save(folder / f"masks/{one}.png")
    return names


def convert_all(config: MedicalConfig, draft: Path) -> tuple[str, list[str]]:
    """Writes images/, masks/ and groups.txt; returns what they are, in words, and errors of volumes left out."""
    volumes, masks, faults = find_volumes(Path(config.images)), {}, []
    if config.masks:
        masks = find_volumes(Path(config.masks))
        # nnU-Net numbers the channels of a case; they share a mask.
        channels = {name: re.sub(r"_\d{4}$", "", name) for name in volumes.keys() - masks.keys()}
        masks |= {name: masks[case] for name, case in channels.items() if case in masks}
        lacking = sorted(volumes.keys() - masks.keys())
        if lacking:
            raise UsageError(f"{config.masks} has no NIfTI file for {', '.join(lacking[:5])}; move these elsewhere")
    for kind in ("images", "masks") if masks else ("images",):
        (draft / kind).mkdir()
    lines = []
    for name, path in tqdm(volumes.items(), unit="volume", disable=None):
        try:
            lines += [f"{one} {name}" for one in convert(name, path, masks.get(name), config, draft)]
        except UsageError as error:
            faults.append(str(error))
    if not lines:
        raise UsageError(faults[0])
    (draft / "groups.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    others = [
        path.name for path in Path(config.images).iterdir() if path not in volumes.values() and path.name[0] != "."
    ]
    skipped = f"; skipped {', '.join(sorted(others)[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
    return f"{len(lines)} slices of {len(volumes) - len(faults)} volumes{skipped}", faults


def restore_all(config: MedicalConfig, draft: Path) -> tuple[str, list[str]]:
    """Writes the predicted masks of volumes as NIfTI; returns as `convert_all`."""
    import nibabel

    volumes, written = find_volumes(Path(config.images)), 0
    for name, path in tqdm(volumes.items(), unit="volume", disable=None):
        volume = read_volume(path)
        labels = np.zeros(volume.values.shape, np.uint8)
        files = [
            Path(config.predictions) / f"{slice_name(name, config.axis, number)}_mask.png"
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
        image = nibabel.Nifti1Image(labels, volume.affine, volume.header, dtype=np.uint8)
        image.header.set_slope_inter(1, 0)  # not the volume's
        if volume.header is None:
            image.header.set_xyzt_units("mm")
        nibabel.save(image, draft / f"{name}.nii.gz")
        written += 1
    if not written:
        raise UsageError(
            f"{config.predictions} has no masks of slices of these volumes across axis {config.axis}, such as "
            f"{slice_name('NAME', config.axis, 0)}_mask.png"
        )
    return f"{written} of {len(volumes)} volumes", []


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
        said, faults = (restore_all if config.predictions else convert_all)(config, draft)
        if home.exists():
            home.rmdir()  # empty, as seen above
        draft.rename(home)
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is missing: pip install -r requirements-medical.txt") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(f"{home}: {said}")
    if faults:
        raise RunError(f"volumes left out ({len(faults)}): {' | '.join(faults)}")


if __name__ == "__main__":
    cli.run(main)
