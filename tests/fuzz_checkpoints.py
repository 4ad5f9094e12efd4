"""Hostile checkpoints: changed entries, changed pickles with right checksums, damaged bytes."""

import collections
import copy
import io
import random
import zipfile
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch

DELETE = object()


class Case(NamedTuple):
    """A checkpoint with one entry changed, by the keys that lead to it; the value DELETE removes it."""

    name: str
    path: tuple
    value: Any


def odd_values() -> dict[str, Any]:
    """Values of every kind, by name; each is right for few entries or for none."""
    attributed, small, state = collections.OrderedDict(a=1), torch.zeros(3), torch.get_rng_state()
    attributed.items = 5
    numbers = [None, True, 0, 1, -1, 64, 10**18, 10**80, 0.5, -0.5, 1e308, float("nan"), float("inf"), 1j]
    texts = ["", "a", "../a", "a\n\x1b[2J\0", "a\udcff", "(" * 2000, "x{9999999999}", "1" * 5000, "x" * 10**5, "0" * 64]
    texts += ["a,b", "1,99", "near", "keep", "stem", "unet", "official", "test", "transformer", "trimap", "denoising"]
    others = [b"a", [], [1], [[[]]], ["a", "b"], [1, 2], [1.0, 99.0], [None] * 101, (1,), {}, {"a": 1}, {1}, object()]
    values = {f"{type(value).__name__} {value!r}"[:40]: value for value in [*numbers, *texts, *others]}
    return values | {
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
    """A case for every value in the place of every entry of a checkpoint, or of its part at a path."""
    values, where = odd_values(), ".".join(map(str, path))
    if path:
        yield Case(f"{where}: missing", path, DELETE)
        if isinstance(content, torch.Tensor):
            values |= {f"own {name}": value for name, value in variants(content).items()}
        yield from (Case(f"{where}: {name}", path, value) for name, value in values.items())
    if isinstance(content, list) and content:
        yield Case(f"{where}: twice as long", path, content * 2)
        yield from single_cases(content[-1], (*path, len(content) - 1))
    elif isinstance(content, dict):
        keys = [key for key in ("extra", 7, *values.values()) if isinstance(key, Hashable) and type(key) is not object]
        yield from (Case(f"{where}: extra entry {key!r}"[:60], (*path, key), 1) for key in keys)
        keys = list(content)
        few = keys if len(keys) < 20 or path == ("training", "settings") else keys[:1] + keys[-1:]
        for key in few:
            yield from single_cases(content[key], (*path, key))


def edited(content: dict, case: Case) -> dict:
    """The checkpoint of a case; what is not changed is shared."""
    made = place = copy.copy(content)
    *path, last = case.path
    for key in path:
        place[key] = copy.copy(place[key])
        place = place[key]
    if case.value is DELETE:
        del place[last]
    else:
        place[last] = case.value
    return made


def with_pickle(data: bytes, change) -> bytes:
    """A file of torch.save whose pickle is what `change` makes of it, with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo(name)
            new.writestr(entry, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
            entry.external_attr = 0
    return file.getvalue()


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
