"""Broken images for tests: small ones of every format that is read, with bits, fields, chunks and lengths changed.

What is made depends on seed and number alone, and on the encoders of the installed Pillow.
"""

import functools
import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

ENDINGS = ("jpg", "png", "bmp", "gif", "tif", "webp", "npy")
# Sizes, counts, types and offsets that break decoders; 13000 is a side that Pillow lets pass.
EDGES = (0, 1, 2, 3, 4, 5, 8, 16, 127, 128, 255, 256, 4000, 13000, 32767, 32768, 65535, 2**24)
EDGES += (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def _encoded(mode: str, file_format: str, **options) -> bytes:
    """An image of 37x29, as a file."""
    y, x = np.mgrid[:29, :37]
    pixels = np.stack([x * 7, y * 8, (x ^ y) * 4], axis=-1).astype(np.uint8)
    special, file = {"I;16": np.uint16(x * y * 50), "trimap": np.uint8(1 + x // 13)}, io.BytesIO()
    image = Image.fromarray(special[mode]) if mode in special else Image.fromarray(pixels).convert(mode)
    others = [image.rotate(180)] if options.get("save_all") else []
    image.save(file, file_format, append_images=others, **options)
    return file.getvalue()


def _array(save, shape: tuple, kind: str) -> bytes:
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
    notes.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    more = {"progressive": True, "icc_profile": b"no profile"}
    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    return {
        "jpg": [_encoded("RGB", "JPEG", exif=exif), _encoded("L", "JPEG", **more), _encoded("CMYK", "JPEG")]
        + [_encoded("RGB", "MPO", save_all=True)],
        "png": [_encoded("RGB", "PNG", exif=exif, pnginfo=notes), _encoded("P", "PNG", transparency=b"\0\x80")]
        + [_encoded(mode, "PNG") for mode in ("1", "LA", "RGBA", "I;16", "trimap", "trimap")]
        + [_encoded("RGB", "PNG", save_all=True)],
        "bmp": [_encoded(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")],
        "gif": [_encoded("P", "GIF", transparency=3), _encoded("L", "GIF"), _encoded("RGB", "GIF", save_all=True)],
        "tif": [_encoded(mode, "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16")]
        + [_encoded("RGB", "TIFF", compression=name, tiffinfo={0x0112: 8}) for name in packed]
        + [_encoded("1", "TIFF", compression="group4"), _encoded("RGB", "TIFF", exif=exif, save_all=True)]
        + [_encoded("RGB", "TIFF", big_tiff=True)],
        "webp": [_encoded("RGB", "WEBP", exif=exif), _encoded("RGBA", "WEBP", lossless=True)]
        + [_encoded("RGB", "WEBP", save_all=True)],
        "npy": [_array(np.save, shape, kind) for shape in ((29, 37, 3), (29, 37)) for kind in ("u1", "<u2", ">f4", "?")]
        + [_array(np.savez, (29, 37, 3), "u1")],
    }


def _place(rng: random.Random, data: bytes) -> int:
    """A position in a file, most likely in its head or at its end, where the fields are."""
    last = max(0, len(data) - 1)
    return min(last, rng.randint(0, rng.choice((60, 60, 250, 250, last, last)))) if rng.random() < 0.9 else last


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        data[_place(rng, data)] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    length, at = len(data), rng.randrange(len(data))
    del data[at:]
    data += rng.choice((b"", b"", bytes(length - at), rng.randbytes(length - at)))


def _field(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 3))):
        form = rng.choice(("<B", "<H", ">H", "<I", ">I", "<Q"))
        size = struct.calcsize(form)
        at = max(0, min(_place(rng, data), len(data) - size))
        data[at : at + size] = struct.pack(form, rng.choice(EDGES) % 256**size)


def _block(rng: random.Random, data: bytearray) -> None:
    """Removes, repeats or moves some bytes."""
    at = _place(rng, data)
    block = data[at : at + rng.choice((1, 2, 4, 12, 60))]
    if rng.random() < 0.6:
        del data[at : at + len(block)]
    if rng.random() < 0.6:
        to = _place(rng, data)
        data[to:to] = block * rng.choice((1, 1, 2, 50))


CHANGES = (_flip, _cut, _field, _field, _block)


def _png_chunks(rng: random.Random, data: bytearray) -> None:
    """Changes a chunk of a PNG, or their order; checksums stay right, so that the change is looked at."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + length])])
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    if content and rng.random() < 0.7:
        if kind == b"IDAT" and rng.random() < 0.7:
            content[:] = zlib.decompress(content)
            rng.choice(CHANGES)(rng, content)
            content[:] = zlib.compress(content)
        else:
            rng.choice(CHANGES)(rng, content)
    else:
        chunks.insert(rng.randint(0, len(chunks)), chunks.pop(number) if rng.random() < 0.5 else [kind, content])
    data[8:] = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)


def fuzz_image(seed: int, number: int) -> tuple[str, bytes]:
    """Name and bytes of a broken image, or of one that is still whole; the formats take turns."""
    rng, ending = random.Random(f"{seed} {number}"), ENDINGS[number % len(ENDINGS)]
    data = bytearray(rng.choice(sources()[ending]))
    if ending == "png" and rng.random() < 0.6:
        _png_chunks(rng, data)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            if data:
                rng.choice(CHANGES)(rng, data)
    return f"{number:05}.{ending}", bytes(data)
