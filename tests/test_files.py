"""Atomic writes, locks and CSV logs."""

import os
import subprocess
import sys

import pytest

import utils
from helpers import SRC
from runtime.files import lock_file


def test_atomic_write_leaves_the_old_file_where_writing_fails(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="no more ink"), utils.atomic_write(file) as stream:
        stream.write("half")
        raise RuntimeError("no more ink")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_atomic_write_follows_links_and_writes_to_devices(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with utils.atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    with utils.atomic_write(tmp_path / "null") as file:
        file.write("nothing")
    assert not (tmp_path / "null").resolve().is_file()


def test_long_and_undecodable_names_are_written(tmp_path):
    name = tmp_path / ("\u732b" * 80 + ".png")
    with utils.atomic_write(name, "wb") as file:
        file.write(b"x")
    assert name.read_bytes() == b"x"
    utils.append_rows(tmp_path / "log.csv", [{"picture": "caf\udce9.jpg"}])
    assert utils.read_rows(tmp_path / "log.csv") == [{"picture": "caf\udce9.jpg"}]


def test_logs_gain_rows_and_columns(tmp_path):
    log = tmp_path / "log.csv"
    utils.append_rows(log, [{"a": 1, "b": 'quoted, "text"'}])
    utils.append_rows(log, [{"a": 2, "b": "x", "c": 3}])
    assert utils.read_rows(log) == [{"a": "1", "b": 'quoted, "text"', "c": ""}, {"a": "2", "b": "x", "c": "3"}]
    assert utils.read_rows(tmp_path / "none.csv") == []
    log.write_text("a,b\n1,2")  # without an end, as some editors leave it
    utils.append_rows(log, [{"a": 3, "b": 4}])
    assert log.read_text() == "a,b\n1,2\n3,4\n"


HOLDS = """
from runtime.files import lock_file

with lock_file("lock", wait=True):
    print("held", flush=True)
    input()
"""


def test_a_lock_of_another_process_is_seen_until_it_ends(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), lock_file(tmp_path / "lock", wait=False):
            pass
        holder.kill()
        holder.wait()
        with lock_file(tmp_path / "lock", wait=False) as file:
            file.write("mine")
