"""Saved state of torch's objects, checked against that of new ones."""

import math


def adopt_plain(saved: dict, fresh: dict, what: str) -> dict:
    """The values of `saved` for the keys of `fresh`, the state of an object just made.

    Keys that are missing keep their fresh value, unknown ones are dropped: both come of other versions of torch.

    Raises:
        ValueError: a value is of another kind than the fresh one.
    """

    def kind(value):
        if isinstance(value, (list, tuple)):
            return "list", [kind(x) for x in value]
        return type(value)

    for key in fresh.keys() & saved.keys():
        value, before = saved[key], fresh[key]
        sound = kind(value) == kind(before)
        if sound and type(value) is int:
            sound = -1 <= value < 1 << 31
        elif sound and type(value) is float:
            sound = math.isfinite(value) or not math.isfinite(before)
        if not sound:
            raise ValueError(f"{what}.{key} has an impossible value")
    return {key: saved.get(key, value) for key, value in fresh.items()}
