"""What the pickle inside a checkpoint may do: make dicts, lists, plain values and tensors, and nothing else.

torch's own list for weights_only=True is longer: with it a small file can take any memory (bytearray, nested
OrderedDicts, a storage read under many names) or end the process (tuples nested a million deep). This walk over the
opcodes runs before anything is unpickled, and never executes them.
"""

import pickle
import pickletools
import re
import zipfile

ENTRY = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
STORAGE = re.compile(r"torch \w+Storage")
ARGUMENTS = {  # how many arguments each callable may get
    "collections OrderedDict": (0,),
    "torch._utils _rebuild_tensor_v2": (6, 7),
    "torch._utils _rebuild_parameter": (3,),
}
VALUES = {
    *("EMPTY_DICT", "EMPTY_LIST", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
}
MAX_BYTES, MAX_DEPTH = 16 << 20, 16  # ours take less than 1 MB
MARK = object()


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises UnpicklingError where a file of torch.save holds more than tensors and plain values."""
    for entry in archive.infolist():
        if not ENTRY.fullmatch(entry.filename):
            raise pickle.UnpicklingError(f"unknown record {entry.filename}")
        if entry.filename.endswith("data.pkl"):
            if entry.file_size > MAX_BYTES:
                raise pickle.UnpicklingError("too large")
            _Walk().run(archive.read(entry))


class _Walk:
    """The stack machine of a pickle, with tuples (length, depth), names of globals and None for all else."""

    def __init__(self):
        self.stack: list = []
        self.memo: dict = {}

    def run(self, raw: bytes) -> None:
        for code, argument, _ in pickletools.genops(raw):
            self._step(code.name, argument)

    def _step(self, name: str, argument) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
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
            stack.append(None)
        elif name == "BINPERSID":  # a storage
            stack[-1] = None
        elif name in ("APPEND", "BUILD"):
            stack.pop()
        elif name == "SETITEM":
            del stack[-2:]
        elif name not in ("PROTO", "STOP"):
            raise pickle.UnpicklingError(f"it uses {name}")

    def _pop_to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items

    def _push_tuple(self, items: list) -> None:
        depth = 1 + max((item[1] for item in items if isinstance(item, tuple)), default=0)
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError("it is nested too deep")
        self.stack.append((len(items), depth))
