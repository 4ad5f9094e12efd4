"""Broken images, thousands of them in the long form: each is read, or it is named as a fault.

They are small ones of every format that is read, with bits, fields and lengths changed. What is made depends on seed
and number alone, and on the encoders of the installed Pillow.
"""

import collections
import functools
import io
import os
import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data.image_io import image_size_of, read_class_mask, read_header, read_image, read_trimap
from data.layout import Sample
from data.view import View
from helpers import assert_one_error, log_rows, run_script, save
from runtime.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as in scripts
SEED, SIZE = 1, (64, 64)
SECONDS = 10  # for an image; one of 179 million pixels, where Pillow draws the line, takes the most
ENDINGS = ("jpg", "png", "bmp", "gif", "tif", "webp", "npy")
# Sizes, counts, types and offsets that break decoders; 13000 is a side that Pillow lets pass.
EDGES = (0, 1, 2, 3, 4, 5, 8, 16, 127, 128, 255, 256, 4000, 13000, 32767, 32768, 65535, 2**24)
EDGES += (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def encoded(mode: str, file_format: str, **options) -> bytes:
    """An image of 37x29, as a file."""
    y, x = np.mgrid[:29, :37]
    pixels = np.stack([x * 7, y * 8, (x ^ y) * 4], axis=-1).astype(np.uint8)
    special, file = {"I;16": np.uint16(x * y * 50), "trimap": np.uint8(1 + x // 13)}, io.BytesIO()
    image = Image.fromarray(special[mode]) if mode in special else Image.fromarray(pixels).convert(mode)
    others = [image.rotate(180)] if options.get("save_all") else []
    image.save(file, file_format, append_images=others, **options)
    return file.getvalue()


def array(save, shape: tuple, kind: str) -> bytes:
    file = io.BytesIO()
    save(file, np.arange(np.prod(shape)).reshape(shape).astype(kind))
    return file.getvalue()


@functools.cache
def sources() -> dict[str, list[bytes]]:
    """Whole files, by the ending of their format: every mode and compression that Pillow writes."""
    exif, notes = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9286: b"comment"}
    exif = exif.tobytes()
    notes.add_text("Raw profile type exif", "\nexif\n  8\n4d4d002a00000008", zip=True)
    more = {"progressive": True, "icc_profile": b"no profile"}
    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return {
        "jpg": [encoded("RGB", "JPEG", exif=exif), encoded("L", "JPEG", **more), encoded("CMYK", "JPEG")],
        "png": [encoded("RGB", "PNG", exif=exif, pnginfo=notes), encoded("P", "PNG", transparency=b"\0\x80")]
        + [encoded(mode, "PNG") for mode in ("1", "LA", "RGBA", "I;16", "trimap", "trimap")],
        "bmp": [encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")],
        "gif": [encoded("P", "GIF", transparency=3), encoded("L", "GIF"), encoded("RGB", "GIF", save_all=True)],
        "tif": [encoded(mode, "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16")]
        + [encoded("RGB", "TIFF", compression=name, tiffinfo={0x0112: 8}) for name in packed]
        + [encoded("RGB", "TIFF", exif=exif, save_all=True), encoded("RGB", "TIFF", big_tiff=True)],
        "webp": [encoded("RGB", "WEBP", exif=exif), encoded("RGBA", "WEBP", lossless=True)],
        "npy": [array(np.save, shape, kind) for shape in ((29, 37, 3), (29, 37)) for kind in ("u1", "<u2", ">f4", "?")]
        + [array(np.savez, (29, 37, 3), "u1")],
    }


def with_checksums(data: bytearray) -> bytearray:
    """A PNG with the checksums of its chunks made right, so that what is in them is looked at."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


def change(rng: random.Random, data: bytearray) -> None:
    """Flips bits, cuts the file off, sets a field, or moves some bytes."""
    last = len(data) - 1  # most likely it is in the file's head or at its end, where the fields are
    places = [min(last, rng.randint(0, rng.choice((60, 250, last)))) if rng.random() < 0.9 else last for _ in range(8)]
    kind, at = rng.choice(("flip", "cut", "field", "field", "move")), places[0]
    if kind == "flip":
        for place in places[: rng.choice((1, 2, 8))]:
            data[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        at = rng.randrange(len(data))
        data[at:] = rng.choice((b"", bytes(len(data) - at)))
    elif kind == "field":
        form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q"))
        data[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice(EDGES) % 256 ** struct.calcsize(form))
    else:
        block = data[at : at + rng.choice((1, 4, 12, 60))]
        if rng.random() < 0.6:
            del data[at : at + len(block)]
        data[places[1] : places[1]] = block * rng.choice((0, 1, 2, 50))


def fuzz_image(seed: int, number: int) -> tuple[str, bytes]:
    """Name and bytes of a broken image, or of one that is still whole; the formats take turns."""
    rng, ending = random.Random(f"{seed} {number}"), ENDINGS[number % len(ENDINGS)]
    data = bytearray(rng.choice(sources()[ending]))
    for _ in range(rng.choice((1, 1, 2))):
        if data:
            change(rng, data)
    if ending == "png" and rng.random() < 0.6:
        data = with_checksums(data)
    return f"{number:05}.{ending}", bytes(data)


def short_and_long(short: int, long: int):
    """Runs a test with so many images, and with more of them in `make test-all` alone."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.long)])


def readers(folder) -> dict:
    """Every way in which a file is read, as an image or as a mask."""
    image, mask = folder / "image.png", folder / "mask.png"
    save(image, np.zeros((29, 37, 3), np.uint8))
    save(mask, np.pad(np.ones((15, 23), np.uint8), 7))
    view, gray = View(64), View(64, "keep", 1)
    return {
        "describe": read_header,
        "size": lambda file: image_size_of(file, upright=True),
        "full": lambda file: read_image(file, None, upright=True),
        "thumbnail": lambda file: read_image(file, SIZE, upright=True, own_range=True),
        "gray": lambda file: gray.read_at(Sample("x", file), gray.fit(image_size_of(file))),
        "pair": lambda file: view.read_at(Sample("x", file, mask), SIZE),
        "mask": lambda file: view.read_at(Sample("x", image, file), SIZE),
        "trimap": read_trimap,
        "classes": lambda file: read_class_mask(file, ("ground", "one", "two")),
    }


@short_and_long(300, 7000)
def test_files_are_read_or_refused(tmp_path, count):
    ways, ends = readers(tmp_path), collections.Counter()
    for number in range(count):
        name, data = fuzz_image(SEED, number)
        file = tmp_path / name  # of a failure it stays
        file.write_bytes(data)
        for way, read in ways.items():
            start = time.process_time()
            try:
                read(file)
                ends[way, "read"] += 1
            except DatasetError as error:
                assert name in str(error)
                assert "\n" not in str(error)
                ends[way, "refused"] += 1
            assert time.process_time() - start < SECONDS, (way, name)
        file.unlink()
    assert all(ends[way, end] for way in ways for end in ("read", "refused")), ends


@short_and_long(60, 3000)
def test_inference_lists_what_it_can_not_read(tmp_path, model_flags, count):
    (tmp_path / "in").mkdir()
    for number in range(count):
        name, data = fuzz_image(SEED + 1, number)
        (tmp_path / "in" / name).write_bytes(data)
    flags = ("--data_path", "in", "--output_path", "out", "--save", "masks,panels")
    done = run_script("inference.py", *model_flags, *flags, cwd=tmp_path)
    table = log_rows(tmp_path, "inference")
    assert len(table) == count
    whole = [row for row in table if not row["error"]]
    assert 0.2 * count < len(whole) < 0.8 * count
    if os.name == "nt":
        done.stderr = done.stderr.splitlines()[-1]  # libtiff writes lines of its own
    assert_one_error(done, f"{count - len(whole)} of {count:,} images, or their masks, can't be used", status=1)
    for row in whole:
        with Image.open(tmp_path / "out" / f"{row['picture'][3:].rpartition('.')[0]}_mask.png") as mask:
            assert mask.size == (int(row["width"]), int(row["height"]))
    for file in tmp_path.glob("out/*.png"):
        np.asarray(Image.open(file))  # whole, whatever became of its image
    assert not [file for file in (tmp_path / "out").iterdir() if file.suffix not in (".png", ".html")]
