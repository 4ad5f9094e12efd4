"""Crashes at every system call: what a folder may hold after a kill or a power failure.

`Recorder` notes what the kernel has of a folder, and what of it is on the disk, before every call that changes it.
`crash_states` derives what may be found afterwards, in the way of ALICE (Pillai et al., 2014:
https://www.usenix.org/conference/osdi14/technical-sessions/presentation/pillai):

- after a kill, all calls so far, and a part of what was being written;
- after a power failure, of the changes of names since the folder was synced the first ones, or all but one; and of what
  was written since a file was synced nothing, a half, zeros, all, or all but one file.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CALLS = {"os.rename": 2, "os.link": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1}  # with paths
FOLDER = 0  # what stands in a tree for a folder; files have numbers from 1 on
PARTS = 32  # a write is cut off at so many places
LOOKED_AT = 12  # states of a kind, in a short test
Tree = dict[str, int]
recorders: list["Recorder"] = []  # at most one is active; audit hooks can't be removed


class Moment(NamedTuple):
    """A folder before a call: names and contents for the kernel; names and contents that a power failure leaves."""

    call: str  # what comes next
    tree: Tree
    contents: dict[int, bytes]  # by the number of the file
    names: list[Tree]  # that may be found after a power failure
    synced: dict[int, bytes]  # that are on the disk


class Recorder:
    """Records the moments of a folder while it is active; everything in it is on the disk at the beginning."""

    def __init__(self, folder: Path):
        self.folder, self.moments, self.busy = folder.resolve(), [], False
        self.numbers: dict[int, int] = {}  # of the inodes that are there: the system uses inodes again
        self.contents: dict[int, bytes] = {}
        self.count = 0
        self.tree = self.durable = self._look()
        self.synced = dict(self.contents)
        self.pending: list[dict[str, int | None]] = []  # changes of names that are not synced

    def _look(self) -> Tree:
        tree, numbers = {}, {}
        for path in sorted(self.folder.rglob("*")):
            name, status = path.relative_to(self.folder).as_posix(), path.stat()
            if path.is_dir():
                tree[name] = FOLDER
                continue
            if status.st_ino not in numbers:
                numbers[status.st_ino] = self.numbers.get(status.st_ino) or self.count + 1
                self.count = max(self.count, numbers[status.st_ino])
                self.contents[numbers[status.st_ino]] = path.read_bytes()
            tree[name] = numbers[status.st_ino]
        self.numbers = numbers
        return tree

    def note(self, call: str) -> None:
        """Notes a moment, before `call`."""
        tree = self._look()
        changes = {name: tree.get(name) for name in {*tree, *self.tree} if tree.get(name) != self.tree.get(name)}
        if changes:
            self.pending.append(changes)
        self.tree, everything = tree, range(len(self.pending))
        first = [range(count) for count in spread([*everything, len(everything)])]
        without = [[i for i in everything if i != lost] for lost in spread(everything)]
        names = [with_changes(self.durable, [self.pending[i] for i in some]) for some in (*first, *without)]
        self.moments.append(Moment(call, tree, dict(self.contents), names, dict(self.synced)))

    def sync(self, path: Path) -> None:
        """After a folder or a file was synced."""
        if path.is_dir():
            name = path.relative_to(self.folder).as_posix()
            for change in [c for c in self.pending if any(Path(n).parent.as_posix() == name for n in c)]:
                self.durable = with_changes(self.durable, [change])
                self.pending.remove(change)
        elif path.is_file():
            number = self.numbers[path.stat().st_ino]
            self.synced[number] = self.contents[number] = path.read_bytes()

    def sync_all(self) -> None:
        """After os.sync."""
        self.durable, self.pending, self.synced = self.tree, [], dict(self.contents)

    def has(self, path) -> bool:
        """Whether a path lies in the folder."""
        return isinstance(path, (str, os.PathLike)) and Path(path).resolve().is_relative_to(self.folder)


def spread(items: Sequence, most: int = 4) -> list:
    """Up to so many items, evenly spread, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def with_changes(tree: Tree, changes: list[dict[str, int | None]]) -> Tree:
    """A tree after some changes; None is a name that is gone."""
    for change in changes:
        tree = {name: number for name, number in {**tree, **change}.items() if number is not None}
    return tree


def _hook(event: str, args: tuple) -> None:
    if not recorders or recorders[0].busy:
        return
    recorder = recorders[0]
    recorder.busy = True
    try:
        opens = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if any(recorder.has(path) for path in args[: 1 if opens else CALLS.get(event, 0)]):
            recorder.note(event)
    finally:
        recorder.busy = False


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[list[Moment]]:
    """Records what is done in the context; gives the list that is being filled."""
    if not getattr(recorded, "hooked", False):
        sys.addaudithook(_hook)
        recorded.hooked = True
    recorder, fsync, sync = Recorder(folder), os.fsync, os.sync

    def noting_fsync(handle) -> None:
        path = Path(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}").readlink()
        recorder.busy = True
        if recorder.has(path):
            recorder.note("fsync")
            recorder.sync(path)
        recorder.busy = False

    def noting_sync() -> None:
        recorder.busy = True
        recorder.note("sync")
        recorder.sync_all()
        recorder.busy = False

    os.fsync, os.sync = noting_fsync, noting_sync
    recorders.append(recorder)
    try:
        yield recorder.moments
        recorder.busy = True
        recorder.note("end")
    finally:
        recorders.clear()
        os.fsync, os.sync = fsync, sync


def _after_power_failure(moment: Moment) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Contents that may be found, with a word for how."""
    unsynced = [number for number, content in moment.contents.items() if moment.synced.get(number) != content]
    lost = {number: moment.synced.get(number, b"") for number in unsynced}
    for kept in ("nothing", "half", "zeros", "all"):
        found = dict(moment.contents)
        for number in unsynced:
            base = lost[number] if found[number].startswith(lost[number]) else b""
            more = found[number][len(base) :]
            found[number] = {
                "nothing": lost[number],
                "half": base + more[: len(more) // 2],
                "zeros": base + bytes(len(more)),
                "all": found[number],
            }[kept]
        yield f"{kept} kept", found
    for number in spread(unsynced):
        yield f"all but file {number} kept", {**moment.contents, number: lost[number]}


def crash_states(moments: list[Moment]) -> Iterator[tuple[str, Tree, dict[int, bytes]]]:
    """All different states of the folder: when and how in words, names, contents."""
    seen = set()

    def fresh(tree: Tree, contents: dict[int, bytes]) -> bool:
        # An object's hash of bytes is computed once.
        digest = hash(frozenset((name, number, hash(contents.get(number, b""))) for name, number in tree.items()))
        return digest not in seen and not seen.add(digest)

    for number, (now, later) in enumerate(zip(moments, [*moments[1:], moments[-1]])):
        place = f"call {number}, {now.call}"
        if fresh(now.tree, now.contents):
            yield f"killed before {place}", now.tree, now.contents
        for part in range(1, PARTS):
            contents = dict(later.contents)
            for file, whole in later.contents.items():
                start = now.contents.get(file, b"")
                if whole.startswith(start):
                    contents[file] = whole[: len(start) + (len(whole) - len(start)) * part // PARTS]
            if fresh(later.tree, contents):
                yield f"killed in a write before call {number + 1}, {later.call}", later.tree, contents
        for how, contents in _after_power_failure(now):
            for names in now.names:
                if fresh(names, contents):
                    yield f"power failure before {place}, {how}", names, contents


def lay_out(folder: Path, tree: Tree, contents: dict[int, bytes]) -> None:
    """Makes a folder hold exactly a state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first: dict[int, Path] = {}
    for name, number in sorted(tree.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number == FOLDER:
            path.mkdir(exist_ok=True)
        elif number in first:
            os.link(first[number], path)
        else:
            path.write_bytes(contents.get(number, b""))
            first[number] = path


def try_all(folder: Path, moments: list[Moment], check: Callable[[], None], least: int) -> None:
    """Lays out the states of a folder, of which there are so many at least, and calls `check`, which must not raise.

    All are tried with CRASHES=all in the environment, else a few.
    """
    states = list(crash_states(moments))
    print(f"{len(states)} states")
    assert len(states) >= least
    failed = []
    for what, tree, contents in states if os.environ.get("CRASHES") == "all" else spread(states, LOOKED_AT):
        lay_out(folder, tree, contents)
        try:
            check()
        except Exception as error:  # noqa: BLE001  whatever is wrong is what we came to see
            failed.append(f"{what}: {error!r}")
    print("\n".join(failed))
    assert not failed
