"""The page: in a real browser, and as an attacker asks it."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from helpers import SRC, Script, assert_one_error, run_script, scene, write_scenes

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The address of a running page, and what it has printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("page")
    flags = ["--save_dir", trained / "saved_models", "--port", port]
    script, address = Script(SRC / "demo.py", flags, folder), f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert script.poll() is None, script.stderr.read_text()
        try:
            return urllib.request.urlopen(address, timeout=5).status == 200
        except OSError:
            return False

    script.wait_until(answers)
    yield address, script
    status, upload = Attacker(address).upload(b"last.png", b"x")
    assert (status, Path(upload).exists()) == (200, True)
    script.send_signal(signal.SIGTERM)
    assert script.finish().returncode == 128 + signal.SIGTERM
    assert not Path(upload).parents[1].exists()
    assert "demo.py" not in script.stderr.read_text()  # in no stack trace; Gradio prints some of what it refuses


@pytest.fixture
def browser(tmp_path, page):
    """A browser that shows the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get(page[0])
    yield driver
    driver.quit()


def wait_for(browser, selector: str, attribute: str | None = None, seconds: float = 40) -> str:
    """The text, or an attribute, of an element, once it is there and not empty."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for element in browser.find_elements(By.CSS_SELECTOR, selector):
            with contextlib.suppress(StaleElementReferenceException):  # the page has drawn it anew meanwhile
                text = element.get_attribute(attribute) if attribute else element.text
                if text:
                    return text
        time.sleep(0.1)
    raise AssertionError(f"no {selector}: {browser.find_element(By.TAG_NAME, 'body').text}")


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium, chromedriver")
def test_photograph_in_cutout_out(browser, tmp_path):
    scene(200, 120).save(tmp_path / "my pet.png")
    wait_for(browser, "#photograph input[type=file]", "data-testid")
    browser.find_element(By.CSS_SELECTOR, "#photograph input[type=file]").send_keys(str(tmp_path / "my pet.png"))
    wait_for(browser, "#overlay img", "src")
    wait_for(browser, "#cutout img", "src")
    for kind in ("cutout", "mask"):
        browser.find_element(By.ID, f"download_{kind}").click()
        # Until it is complete, an empty file bears its name.
        Script.wait_until(lambda kind=kind: any(p.stat().st_size for p in tmp_path.glob(f"*_{kind}.png")))
    (cutout,), (mask,) = (list(tmp_path.glob(f"*_{kind}.png")) for kind in ("cutout", "mask"))
    assert (Image.open(cutout).mode, Image.open(cutout).size) == ("RGBA", (200, 120))
    alpha, mask = np.asarray(Image.open(cutout))[..., 3], np.asarray(Image.open(mask))
    assert 0.05 < (mask == 255).mean() < 0.9
    assert alpha[mask == 0].mean() < 20 < 128 < alpha[mask == 255].mean()
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 5
    assert [url for url in urls if not url.startswith(("http://127.0.0.1", "data:", "blob:", "chrome"))] == []


class Attacker:
    """Talks to the page without a browser."""

    def __init__(self, address: str):
        self.host = address.removeprefix("http://")

    def ask(self, method: str, path: str, body: bytes = b"", **headers) -> tuple[int, dict, bytes]:
        """Status, headers and content of an answer; of a header's name hyphens are underscores."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in {"Content_Length": len(body), **headers}.items():
                if value is not None:
                    connection.putheader(name.replace("_", "-"), str(value))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def upload(self, name: bytes, content: bytes) -> tuple[int, str]:
        """The status and, if that is 200, where the upload is."""
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n'
        kind = "multipart/form-data; boundary=x"
        status, _, said = self.ask("POST", UPLOAD, head + content + b"\r\n--x--\r\n", Content_Type=kind)
        return status, json.loads(said)[0] if status == 200 else ""

    def segment(self, photograph) -> tuple[bool, str]:
        """Whether the page has segmented a photograph, and the answer."""
        session = secrets.token_hex(4)
        data = {"data": [photograph, 0.5], "fn_index": 0, "session_hash": session}
        queue, body = "/gradio_api/queue", json.dumps(data).encode()
        status, _, said = self.ask("POST", f"{queue}/join", body, Content_Type="application/json")
        assert status == 200, said
        url = f"http://{self.host}{queue}/data?session_hash={session}"
        with urllib.request.urlopen(url, timeout=40) as stream:
            for line in stream:
                if b"process_completed" in line:
                    message = json.loads(line.removeprefix(b"data:"))
                    return message["success"], json.dumps(message["output"])
        raise AssertionError("no answer")


UPLOAD = "/gradio_api/upload"
META = {"meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def attacker(page):
    return Attacker(page[0])


@pytest.fixture(scope="module")
def photograph(attacker, tmp_path_factory) -> str:
    """Where an upload is."""
    file = tmp_path_factory.mktemp("photograph") / "my pet.png"
    scene().save(file)
    return attacker.upload(b"my pet.png", file.read_bytes())[1]


@pytest.mark.parametrize("form", ["{}", "{}%00.png", "file://{}", "/{}", "../../../../../../../../..{}"])
def test_files_of_this_machine_are_not_served(attacker, tmp_path, form):
    write_scenes(tmp_path, "secret.png")
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/svelte/"):
        for path in (form.format(tmp_path / "secret.png"), form.format("/etc/passwd")):
            for escaped in (path, path.replace("..", "%2e%2e"), quote(quote(path))):
                status, _, said = attacker.ask("GET", route + escaped)
                assert status in (400, 403, 404) and b"root:" not in said, route + escaped


def test_files_of_this_machine_are_not_segmented(attacker, photograph, tmp_path):
    assert attacker.segment({"path": photograph, **META})[0]
    write_scenes(tmp_path, "secret.png")
    os.mkfifo(tmp_path / "pipe.png")
    inside = Path(photograph).parent
    for path in (
        *(str(tmp_path / "secret.png"), str(tmp_path / "pipe.png"), "/dev/zero", "/etc/passwd", str(inside)),
        *(f"{inside}/../../../../../..{tmp_path}/secret.png", f"file://{tmp_path}/secret.png", "a" * 5000),
        *("http://127.0.0.1:9/secret.png", "https://localhost/secret.png", photograph + "x"),
    ):
        for meta in ({}, META, {**META, "url": path, "is_stream": True}):
            done, said = attacker.segment({"path": path, **meta})
            assert not done, said
            assert "root:" not in said
    for other in ([photograph], photograph, {"path": [photograph]}, 7):
        assert not attacker.segment(other)[0]


@pytest.mark.parametrize("size", [None, (10_000, 6_000), (18_000, 10_000)])
def test_odd_files_get_a_sentence(attacker, tmp_path, size):
    if size:
        Image.new("1", size).save(tmp_path / "odd.png")
    else:
        (tmp_path / "odd.png").write_text("no image")
    upload = attacker.upload(b"odd.png", (tmp_path / "odd.png").read_bytes())[1]
    done, said = attacker.segment({"path": upload, **META})
    large = size == (10_000, 6_000)
    assert ("has 60.0 megapixels; at most 50" if large else "odd.png can't be read as an image") in said
    assert not done and "/tmp" not in said


def test_uploads_stay_in_their_folder_and_are_never_html(attacker, photograph):
    folder, content = Path(photograph).parents[1], b"<html><script>alert(1)</script></html>"
    for name in (b"../../../../evil.png", b"/tmp/evil.png", b"n\0ul.png", b"%2e%2e%2fevil.png", b"evil.html"):
        status, path = attacker.upload(name, content)
        assert (status, Path(path).parents[1]) == (200, folder)
        status, headers, said = attacker.ask("GET", f"/gradio_api/file={quote(path)}")
        assert (status, said) == (200, content)
        assert headers["content-type"] == "image/png" or headers["content-disposition"].startswith("attachment")
    assert not Path("/tmp/evil.png").exists()


def test_requests_of_other_sites_are_refused(attacker):
    port = attacker.host.rpartition(":")[2]
    for origin in ("http://evil.example", "null", f"http://localhost:{port}0", f"https://{attacker.host}"):
        assert attacker.ask("GET", "/config", Origin=origin)[0] == 403
        assert attacker.ask("POST", UPLOAD, Origin=origin)[0] == 403
    for host in (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):  # a name that leads here
        assert attacker.ask("GET", "/config", Host=host)[0] in (400, 403)
    for host in (attacker.host, f"localhost:{port}"):
        assert attacker.ask("GET", "/config", Host=host, Origin=f"http://{host}")[0] == 200


def test_large_uploads_are_refused(attacker):
    assert attacker.upload(b"large.png", b"x" * 51_000_000)[0] == 413


def test_a_port_in_use_is_one_error(trained, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_script("demo.py", "--save_dir", trained / "saved_models", "--port", port, cwd=tmp_path)
    assert_one_error(done, f"port {port} can't be used")
    assert_one_error(run_script("demo.py", "--save_dir", "nowhere", cwd=tmp_path), "no checkpoint")


def test_a_missing_gradio_is_one_error(tmp_path):
    code = f"""
import runpy, sys
sys.modules["gradio"] = None
runpy.run_path({str(SRC / "demo.py")!r}, run_name="__main__")
"""
    assert_one_error(Script(code, (), tmp_path).finish(), "pip install -r requirements-demo.txt")
