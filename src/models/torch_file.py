"""Files of torch.save, read after a check: what their pickle may do, and what their archive may look like.

The pickle makes dicts, lists, plain values and tensors, and nothing else. torch's own list for weights_only=True is
longer: with it a small file can take any memory (bytearray, nested OrderedDicts, a storage read under many names) or
end the process (tuples nested a million deep). This walk over the opcodes runs before anything is unpickled, and never
executes them.

The archive is one that zipfile, which checks it, and torch, which reads it, can't understand in different ways.
"""

import io
import os
import pickle
import pickletools
import re
import zipfile
import zlib
from pathlib import Path

import torch

ENTRY = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
STORAGE = re.compile(r"torch \w+Storage")
ARGUMENTS = {  # how many arguments each callable may get
    "collections OrderedDict": (0,),
    "torch._utils _rebuild_tensor": (4,),
    "torch._utils _rebuild_tensor_v2": (6, 7),
    "torch._utils _rebuild_parameter": (3,),
}
TEXTS = ("BINUNICODE", "SHORT_BINSTRING")  # the second in files of Python 2
VALUES = {
    *("EMPTY_DICT", "EMPTY_LIST", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", *TEXTS),
}
MAX_BYTES, MAX_STEPS, MAX_DEPTH = 16 << 20, 2 * 10**6, 16  # ours take less than 1 MB
MARK, SINGLE = object(), object()
# What zipfile, pickletools and torch raise on files that are damaged, or something else altogether.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError),
    *(AttributeError, AssertionError),
)


def load_archive(path: Path, verify: bool = True, shared: bool = False):
    """The content of a file of torch.save, on the CPU.

    Args:
        path: of the file.
        verify: compare its checksums first; without it the file is mapped and not read.
        shared: whether tensors may share memory. If so, a small file can name a large one a million times.

    Raises:
        UnpicklingError: it holds more than tensors and plain values.
        DAMAGE: it is damaged, or none.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        plain = not any(e.compress_type for e in entries) and sum(e.file_size for e in entries) <= path.stat().st_size
        if not (plain and _is_unambiguous(archive)):
            raise zipfile.BadZipFile("it is not one archive, whole and uncompressed")
        # torch looks at these attributes, and reads wrongly where they are damaged.
        damaged = next((entry.filename for entry in entries if entry.external_attr), None)
        if verify and not damaged:  # torch stores a CRC-32 with every tensor, and does not check it
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
        for entry in entries:
            if not ENTRY.fullmatch(entry.filename):
                raise pickle.UnpicklingError(f"unknown record {entry.filename}")
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > MAX_BYTES:
                    raise pickle.UnpicklingError("too large")
                _Walk(shared).run(archive.read(entry))
    return torch.load(path, map_location="cpu", weights_only=True, mmap=not verify)


def load_stream(path: Path):
    """The content of a file of torch.save from before torch 1.6, which is no archive. Raises as `load_archive` does."""
    with path.open("rb") as file:
        raw = io.BytesIO(file.read(MAX_BYTES))
    for _ in range(5):  # two numbers that mark such a file, the machine that wrote it, the content, names of storages
        _Walk(shared=True).run(raw)
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_unambiguous(archive: zipfile.ZipFile) -> bool:
    """Whether an archive is all of its file and its directory is where each pointer to it says.

    zipfile looks for the directory just before its end record, torch where that says. Two archives in a row would be
    the last one for the first, and the first one for the other.
    """
    names, file = archive.namelist(), archive.fp
    begin, size = (file.seek(0), file.read(4))[1], file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 98))
    tail = file.read().rjust(98, b"\0")  # end record of zip64, its locator, end record

    def number(start: int, length: int) -> int:
        return int.from_bytes(tail[start : start + length], "little")

    same = number(92, 4) in (archive.start_dir, 0xFFFFFFFF) and number(96, 2) == 0  # no comment
    if tail[56:60] == b"PK\6\7":
        same = same and number(64, 8) == size - 98 and number(48, 8) == archive.start_dir
    return same and begin == b"PK\3\4" and tail[76:80] == b"PK\5\6" and len(set(names)) == len(names)


class _Walk:
    """The stack machine of a pickle.

    It holds tuples as (length, depth, name of a storage), texts and names of globals as they are, SINGLE for tensors
    and dicts, and None for all else.

    Args:
        shared: whether tensors and dicts may stand at several places.
    """

    def __init__(self, shared: bool = False):
        self.stack: list = []
        self.memo: dict = {}
        self.shared, self.storages = shared, set()

    def run(self, raw) -> None:
        for number, (code, argument, _) in enumerate(pickletools.genops(raw)):
            if number > MAX_STEPS:
                raise pickle.UnpicklingError("it has too many values")
            self._step(code.name, argument)

    def _step(self, name: str, argument) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument if name in TEXTS else SINGLE if name == "EMPTY_DICT" else None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._name_once(self.memo[argument] is SINGLE)
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("SETITEMS", "APPENDS"):
            self._pop_to_mark()
        elif name in ("EMPTY_TUPLE", "TUPLE"):
            self._push_tuple([] if name == "EMPTY_TUPLE" else self._pop_to_mark())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._push_tuple([stack.pop() for _ in range(int(name[-1]))])
        elif name == "GLOBAL":
            if argument not in ARGUMENTS and not STORAGE.fullmatch(argument):
                raise pickle.UnpicklingError(f"it names {argument}")
            stack.append(argument)
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            if not (isinstance(arguments, tuple) and arguments[0] in ARGUMENTS.get(function, ())):
                raise pickle.UnpicklingError(f"it calls {function}")
            stack.append(SINGLE)
        elif name == "BINPERSID":  # a storage
            key = stack[-1][2]
            self._name_once(key in self.storages)
            self.storages.add(key)
            stack[-1] = None
        elif name in ("APPEND", "BUILD"):
            stack.pop()
        elif name == "SETITEM":
            del stack[-2:]
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"it uses {name}")

    def _name_once(self, again: bool) -> None:
        if again and not self.shared:
            raise pickle.UnpicklingError("tensors share memory")

    def _pop_to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items

    def _push_tuple(self, items: list) -> None:
        depth = 1 + max((item[1] for item in items if isinstance(item, tuple)), default=0)
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError("it is nested too deep")
        self.stack.append((len(items), depth, items[2] if len(items) == 5 else None))
