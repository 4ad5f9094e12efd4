"""Hostile checkpoints: entries drawn from the schema, archives and pickles with right checksums, raw bytes."""

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

from models.schema import DictOf, ListOf, Maybe, Rule

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


def example(rule) -> Any:
    """A value that a rule allows."""
    if isinstance(rule, Maybe):
        return example(rule.rule)
    if isinstance(rule, ListOf):
        return [example(rule.rule)]
    if isinstance(rule, DictOf):
        return {example(rule.key): example(rule.value)}
    if isinstance(rule, dict):
        return {key: example(inner) for key, inner in rule.items()}
    return next(value for value in odd_values().values() if rule.holds(value))


def single_cases(content, rule, path=(), before=()) -> Iterator[Case]:
    """Checkpoints with one entry changed, removed or added, for every entry that the schema knows.

    Args:
        content: of a checkpoint, or of a part of it.
        rule: of the same.
        path: of that part.
        before: edits that put it there.
    """

    def case(what: str, *edits) -> Case:
        return Case(f"{'.'.join(map(str, path))}: {what}", (*before, *edits))

    if isinstance(rule, Maybe):
        rule = rule.rule
        if content is None or (isinstance(content, dict) and not content):
            content = example(rule)
            before = (*before, (path, content))
            yield case("an example")
    values = odd_values()
    if path:
        yield case("missing", (path, DELETE))
        if isinstance(content, torch.Tensor):
            values |= {f"own {name}": value for name, value in variants(content).items()}
        yield from (case(name, (path, value)) for name, value in values.items())
    if isinstance(rule, Rule):
        return
    if isinstance(rule, ListOf):
        parts = {len(content) - 1: rule.rule} if content else {}
        yield case("twice as long", (path, content * 2))
    elif isinstance(rule, DictOf):
        keys = list(content)
        parts = dict.fromkeys(keys if path == ("settings",) else keys[:1] + keys[-1:], rule.value)
        hashable = {name: key for name, key in values.items() if isinstance(key, Hashable) and name[:3] != "obj"}
        yield from (case(f"key {name}", ((*path, key), content[keys[0]])) for name, key in hashable.items())
    else:
        parts = rule
        yield from (case(f"extra entry {key}", ((*path, key), 1)) for key in ("extra", 7))
    for key, inner in parts.items():
        there = content[key] if isinstance(content, list) else content.get(key)
        yield from single_cases(there, inner, (*path, key), before)


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


def hostile_archives(good: bytes, large: bool) -> dict[str, bytes]:
    """Files with right checksums that claim what they don't hold, or are odd otherwise, by name; or large pickles."""
    head = b"\x80\x02ctorch._utils\n_rebuild_"
    pickles = [b"", b".", b"\x80\x02N", b"\x80\x02h\x07.", b"\x80\x02}(N]u.", b"\x80\x02}(Nu.", b"\x80\x02K\x01Q."]
    pickles += [head + b"parameter\n(K\x01\x88NtR.", head + b"parameter\n(N\x88NtRK\x01b.", b"\x80\x02)Q."]
    if large:
        units = {b")": 1_999_000, b"}": 1_999_000, b"N": 15 << 20, b"X\1\0\0\0a": 1_999_000, b"(t": 999_000}
        return {str(unit): archive(b"\x80\x02](" + unit * count + b"e.") for unit, count in units.items()}
    for count in (10**13, 10**9, -4, "4", 4.0):
        pickles.append(pickled({"a": Claim(Storage(count))}))
    for storage in (Storage(kind=None), Storage(kind="a"), Storage(key="../0"), Storage(key=7)):
        pickles.append(pickled({"a": Claim(storage)}))
    for layout in ((10**9,), (1,)), ((-4,), (1,)), ((2**32, 2**32), (1, 1)), ((4,), (-1,)), ((1,), (1,), 2**62):
        pickles.append(pickled({"a": Claim(Storage(), *layout)}))
    for more in ("text",), (False, 5), (False, {"neg": True}), (False, {"conj": True}), (True,):
        pickles.append(pickled({"a": Claim(Storage(), (4,), (1,), 0, *more)}))
    zeros, tensor = {"data/0": bytes(64 << 20)}, Claim(Storage(16 << 20), (16 << 20,))
    found = {f"pickle {number}": archive(raw) for number, raw in enumerate(pickles)}
    return found | {
        "compressed": archive(pickled({"conv1.weight": tensor}), zeros, compress_type=zipfile.ZIP_DEFLATED),
        "larger in the directory": archive(pickled({"a": Claim(Storage())}), file_size=1 << 40),
        "names, one tensor": archive(pickled(dict.fromkeys("abc", Claim(Storage())))),
        "names, one memory": archive(pickled({name: Claim(Storage()) for name in "abc"})),
        "rows, one memory": archive(pickled([[{"a": row}] for row in [{"b": 1}] * 2])),
        "after another": good + good,
        "after text": b"\x80\x02N." + good,
        "with a comment": good[:-2] + b"\2\0ab",
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
