"""The download, against a server on this machine. Only the addresses and checksums are not the real ones."""

import hashlib
import os
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler

import pytest
from torchvision.datasets import OxfordIIITPet

import data.download as download_module
import oxford_pet
from data.dataset import Dataset
from data.download import download
from data.layout import find_root
from helpers import make_dataset, serving
from runtime.errors import DatasetError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Serves images.tar.gz and annotations.tar.gz of a small dataset; returns the folder that is served."""
    source, served = make_dataset(tmp_path / "source", count=40), tmp_path / "served"
    served.mkdir()
    for part in ("images", "annotations"):
        with tarfile.open(served / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(source / part, arcname=part)
    (tmp_path / "data").mkdir()
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in sorted(served.iterdir(), reverse=True)}
    with serving(partial(Quiet, directory=str(served))) as address:
        monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", [(f"{address}/{name}", md5) for name, md5 in sums.items()])
        yield served


def test_download_is_whole_and_safe_to_repeat(archives, tmp_path, capsys):
    root = download(tmp_path / "data")
    assert root == tmp_path / "data/oxford-iiit-pet" == find_root(tmp_path / "data")
    assert len(Dataset(root).samples) == 40
    assert sorted(p.name for p in root.iterdir()) == ["annotations", "images"]
    (archives / "images.tar.gz").unlink()
    assert download(tmp_path / "data") == root  # asks nobody
    assert "is complete" in capsys.readouterr().out


def test_contents_are_on_the_disk_before_folders_get_their_names(archives, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(os, "sync", lambda: found.append(sorted(p.name for p in tmp_path.glob("data/*/*"))))
    download(tmp_path / "data")
    assert found == [[".download"]]


def test_damage_is_mended_where_it_is(archives, tmp_path):
    root = download(tmp_path / "data")
    for plain in (False, True):
        if plain:  # not in a folder of torchvision's name
            for part in ("images", "annotations"):
                (root / part).rename(tmp_path / "data" / part)
            shutil.rmtree(root)
            root = tmp_path / "data"
        for file in sorted((root / "images").glob("*.jpg"))[:7]:
            file.unlink()
        (root / "images/my own.jpg").write_bytes(b"precious")
        with pytest.raises(DatasetError, match="7 of the 80"):
            Dataset(root).split()
        assert download(tmp_path / "data") == root
        Dataset(root).split()
        assert (root / "images/my own.jpg").read_bytes() == b"precious"
        (root / "images/my own.jpg").unlink()


def test_own_pictures_are_left_alone(archives, tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    with pytest.raises(DatasetError, match="images of your own"):
        download(tmp_path / "own")
    root = make_dataset(tmp_path / "mine")  # in the pets' layout
    for file in (root / "annotations").glob("*.txt"):
        file.unlink()
    download(root)
    assert "is complete" in capsys.readouterr().out
    extra = root / "images/no trimap yet.jpg"
    extra.write_bytes(b"precious")
    with pytest.raises(DatasetError, match="images of your own"):
        download(root)
    assert extra.read_bytes() == b"precious"


def test_what_is_no_archive_is_told(archives, tmp_path, monkeypatch):
    whole, (address, _) = (archives / "images.tar.gz").read_bytes(), OxfordIIITPet._RESOURCES[0]
    tampered, words = whole + b"more", "can't be downloaded"
    for content in (tampered, b"", b"<html></html>", whole[:1], whole[:20], whole[:600], whole[:-600], whole[99:]):
        (archives / "images.tar.gz").write_bytes(content)
        with pytest.raises(
            DatasetError, match=f"{words} .*corrupted.*start it again" if content == tampered else words
        ):
            download(tmp_path / "data")
        assert not (tmp_path / "data/oxford-iiit-pet/images").exists()
        monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", [(address, hashlib.md5(content).hexdigest())])


def test_a_server_that_stalls_is_told_and_whole_archives_are_kept(archives, tmp_path, monkeypatch):
    whole, gone = Quiet.copyfile, threading.Event()

    def stalls(self, source, outputfile):
        if "annotations" in self.path:
            outputfile.write(source.read(500))
            outputfile.flush()
            gone.wait(30)
        else:
            whole(self, source, outputfile)

    monkeypatch.setattr(Quiet, "copyfile", stalls)
    monkeypatch.setattr(download_module, "SECONDS", 0.3)
    with pytest.raises(DatasetError, match="timed out"):
        download(tmp_path / "data")
    gone.set()
    assert [path.name for path in (tmp_path / "data/oxford-iiit-pet").iterdir()] == [".download"]
    monkeypatch.setattr(Quiet, "copyfile", whole)
    (archives / "images.tar.gz").unlink()
    assert len(Dataset(download(tmp_path / "data")).samples) == 40


def test_the_disk_is_looked_at_first(archives, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _path: usage._replace(free=10**9))
    with pytest.raises(DatasetError, match="needs 1.7 GB and .* has 1.0 GB free; make room"):
        download(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_no_server_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", [("http://127.0.0.1:9/images.tar.gz", "0" * 32)])
    with pytest.raises(DatasetError, match="can't be downloaded into .*refused.*check the connection"):
        download(tmp_path)


def test_the_command_line_downloads_and_counts(archives, tmp_path, capsys):
    oxford_pet.main(["--download", "--data_path", str(tmp_path / "data")])
    assert "80-10-10: 32 train, 4 valid, 4 test" in capsys.readouterr().out
