"""Hostile checkpoints: changed entries, pickles with right checksums that claim what they don't hold, damaged bytes."""

import collections
import contextlib
import copy
import io
import pickle
import random
import zipfile
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch

DELETE = object()


class Case(NamedTuple):
    """A checkpoint with some entries changed: (path of keys, value) each, DELETE removes one."""

    name: str
    edits: tuple


def odd_values() -> dict[str, Any]:
    """Values of every kind, by name; each is right for few entries or for none."""
    attributed, small, state = collections.OrderedDict(a=1), torch.zeros(3), torch.get_rng_state()
    attributed.items = 5
    numbers = [None, True, 0, 1, -1, 64, 10**18, 10**80, 0.5, -0.5, 1e308, float("nan"), float("inf"), 1j]
    texts = ["", "a", "../a", "a\n\x1b[2J\0", "a\udcff", "(" * 2000, "x{9999999999}", "1" * 5000, "x" * 10**5, "0" * 64]
    texts += ["a,b", "1,99", "near", "keep", "stem", "unet", "official", "test", "transformer", "trimap", "denoising"]
    others = [b"a", [], [1], [[[]]], ["a", "b"], [1, 2], [1.0, 99.0], [None] * 101, (1,), {}, {"a": 1}, {1}, object()]
    found = {f"{type(value).__name__} {value!r}"[:40]: value for value in [*numbers, *texts, *others]}
    return found | {
        "attributes": attributed,
        "empty tensor": torch.zeros(0),
        "scalar": torch.tensor(1.0),
        "tensor of three": small + 1,
        "tensor of six": torch.ones(6, dtype=torch.float64),
        "half": small.half(),
        "whole": small.long(),
        "complex": small.cfloat(),
        "negative view": small.cfloat().conj().imag,
        "bytes": torch.arange(len(state)).to(torch.uint8),
        "strided": state.repeat(2)[::2],
        "nan": small * float("nan"),
        "sparse": small.to_sparse(),
        "expanded": small[:1].expand(10**6, 10**6),
        "overlapping": torch.zeros(64).as_strided((8, 8), (1, 1)),
        "gradient": small.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(small),
    }


def variants(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor in other forms, by name."""
    real = tensor.float()
    return {
        "gradient": real.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(real.clone()),
        "half": real.half(),
        "double": real.double(),
        "whole": tensor.long(),
        "negated": torch._neg_view(real),
        "strided": torch.stack([tensor, tensor], -1)[..., 0],
        "flat": tensor.reshape(-1),
        "larger": real * 1e30,
        "below zero": -1 - real.abs(),
    }


def single_cases(content, path=()) -> Iterator[Case]:
    """Checkpoints with one entry changed, removed or added, for every entry that is there.

    Args:
        content: of a checkpoint, or of a part of it.
        path: of that part.
    """

    def case(what: str, *edits) -> Case:
        return Case(f"{'.'.join(map(str, path))}: {what}", edits)

    values = odd_values()
    if path:
        yield case("missing", (path, DELETE))
        if isinstance(content, torch.Tensor):
            values |= {f"own {name}": value for name, value in variants(content).items()}
        yield from (case(name, (path, value)) for name, value in values.items())
    if isinstance(content, list) and content:
        yield case("twice as long", (path, content * 2))
        yield from single_cases(content[-1], (*path, len(content) - 1))
    elif isinstance(content, dict):
        keys = [key for key in ("extra", 7, *values.values()) if isinstance(key, Hashable) and type(key) is not object]
        yield from (case(f"extra entry {key!r}"[:60], ((*path, key), 1)) for key in keys)
        keys = list(content)
        few = keys if len(keys) < 20 or path == ("settings",) else keys[:1] + keys[-1:]
        for key in few:
            yield from single_cases(content[key], (*path, key))


def combined_cases(singles: list[Case], count: int, rng: random.Random) -> Iterator[Case]:
    """Checkpoints with two to four of these changes at once."""
    for _ in range(count):
        some = rng.sample(singles, rng.randint(2, 4))
        yield Case(" + ".join(one.name for one in some), tuple(edit for one in some for edit in one.edits))


def edited(content: dict, case: Case) -> dict:
    """The checkpoint of a case; what is not changed is shared. An edit of what an earlier one removed does nothing."""
    made = copy.copy(content)
    for (*path, last), value in case.edits:
        place = made
        for key in path:
            there = key in place if isinstance(place, dict) else isinstance(place, list) and key in range(len(place))
            if there:
                place[key] = copy.copy(place[key])
            place = place[key] if there else None
        if value is DELETE and isinstance(place, dict):
            place.pop(last, None)
        elif value is not DELETE and isinstance(place, (dict, list)):
            with contextlib.suppress(LookupError, TypeError):
                place[last] = value
    return made


# ------------------------------------------------------------------------------------------------ archives and pickles


class Storage:
    """What a pickle says of a tensor's memory."""

    def __init__(self, count=4, kind=torch.FloatStorage, key="0"):
        self.name = ("storage", kind, key, "cpu", count)


class Claim:
    """A tensor as a pickle describes it, whatever its memory holds."""

    def __init__(self, storage: Storage, size=(4,), stride=(1,), offset=0, gradient=False, *more):
        self.arguments = (storage, offset, size, stride, gradient, collections.OrderedDict(), *more)

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def pickled(value) -> bytes:
    """The pickle of a value, as in a file of torch.save."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.name if isinstance(obj, Storage) else None

    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def archive(raw: bytes, records: dict | None = None, **changes) -> bytes:
    """A file of torch.save with this pickle; `changes` are of the directory's entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in {"data.pkl": raw, "version": b"3\n", "data/0": bytes(16), **(records or {})}.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.compress_type = changes.get("compress_type", 0)
            made.writestr(entry, data)
            entry.external_attr = 0
            entry.file_size = changes.get("file_size", entry.file_size)
    return file.getvalue()


def with_pickle(data: bytes, change) -> bytes:
    """A file of torch.save whose pickle is what `change` makes of it, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    return archive(change(records.pop("data.pkl")), records)


def hostile_pickles() -> list[bytes]:
    """Pickles that claim what their archive does not hold, or are odd otherwise."""
    head = b"\x80\x02ctorch._utils\n_rebuild_"
    pickles = [b"", b".", b"\x80\x02N", b"\x80\x02h\x07.", b"\x80\x02}(N]u.", b"\x80\x02}(Nu.", b"\x80\x02K\x01Q."]
    pickles += [head + b"parameter\n(K\x01\x88NtR.", head + b"parameter\n(N\x88NtRK\x01b.", b"\x80\x02)Q."]
    for count in (10**13, 10**9, -4, "4", 4.0):
        pickles.append(pickled({"a": Claim(Storage(count))}))
    for storage in (Storage(kind=None), Storage(kind="a"), Storage(key="../0"), Storage(key=7)):
        pickles.append(pickled({"a": Claim(storage)}))
    for layout in ((10**9,), (1,)), ((-4,), (1,)), ((2**32, 2**32), (1, 1)), ((4,), (-1,)), ((1,), (1,), 2**62):
        pickles.append(pickled({"a": Claim(Storage(), *layout)}))
    for more in ("text",), (False, 5), (False, {"neg": True}), (False, {"conj": True}), (True,):
        pickles.append(pickled({"a": Claim(Storage(), (4,), (1,), 0, *more)}))
    return pickles


def hostile_archives() -> dict[str, bytes]:
    """Files of torch.save with right checksums that are odd, by name."""
    zeros, tensor = {"data/0": bytes(64 << 20)}, Claim(Storage(16 << 20), (16 << 20,))
    found = {f"pickle {number}": archive(raw) for number, raw in enumerate(hostile_pickles())}
    return found | {
        "compressed": archive(pickled({"conv1.weight": tensor}), zeros, compress_type=zipfile.ZIP_DEFLATED),
        "larger in the directory": archive(pickled({"a": Claim(Storage())}), file_size=1 << 40),
        "names, one tensor": archive(pickled(dict.fromkeys("abc", Claim(Storage())))),
        "names, one memory": archive(pickled({name: Claim(Storage()) for name in "abc"})),
    }


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with flipped bits, cut off, or with a part zeroed, moved, doubled or left out."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + rng.choice((1, 8, 64, 512, len(data))))
    place = rng.randrange(len(data) + 1)
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    part = data[start:end]
    return rng.choice(
        (
            bytes(flipped),
            data[:start],
            data[:start] + bytes(len(part)) + data[end:],
            data[:start] + data[end:],
            data[:place] + part + data[place:],
            data[:place] + part + data[place + len(part) :],
        )
    )
