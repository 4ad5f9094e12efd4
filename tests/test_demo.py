"""The page, in a real browser."""

import json
import shutil
import socket
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from helpers import SRC, Script, assert_one_error, run_script, scene

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
in_browser = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium, chromedriver")]


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
    script.send_signal(2)
    assert script.finish().returncode in (0, 130)
    assert "Traceback" not in script.stderr.read_text()


@pytest.fixture
def browser(tmp_path, page):
    """A browser that shows the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(flag)
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
            found = element.get_attribute(attribute) if attribute else element.text
            if found:
                return found
        time.sleep(0.1)
    raise AssertionError(f"no {selector}: {browser.find_element(By.TAG_NAME, 'body').text}")


def drop(browser, path) -> None:
    """Gives a file to the page."""
    wait_for(browser, "#photograph input[type=file]", "data-testid")
    browser.find_element(By.CSS_SELECTOR, "#photograph input[type=file]").send_keys(str(path))


class TestPage:
    """From file to downloaded cutout."""

    pytestmark = in_browser

    def test_photograph_in_cutout_out(self, browser, tmp_path):
        scene(200, 120).save(tmp_path / "my pet.png")
        drop(browser, tmp_path / "my pet.png")
        wait_for(browser, "#overlay img", "src")
        wait_for(browser, "#cutout img", "src")
        for kind in ("cutout", "mask"):
            browser.find_element(By.ID, f"download_{kind}").click()
            Script.wait_until(lambda kind=kind: list(tmp_path.glob(f"*_{kind}.png")))
        (cutout,), (mask,) = (list(tmp_path.glob(f"*_{kind}.png")) for kind in ("cutout", "mask"))
        assert (Image.open(cutout).mode, Image.open(cutout).size) == ("RGBA", (200, 120))
        alpha, mask = np.asarray(Image.open(cutout))[..., 3], np.asarray(Image.open(mask))
        assert 0.05 < (mask == 255).mean() < 0.9
        assert (np.abs(alpha.astype(int) - mask) < 128).mean() > 0.99
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
        assert len(urls) > 5
        assert [url for url in urls if not url.startswith(("http://127.0.0.1", "data:", "blob:", "chrome"))] == []

    @pytest.mark.parametrize("kind", ["text", "large", "bomb"])
    def test_odd_files_get_a_sentence(self, browser, page, tmp_path, kind):
        path = tmp_path / "odd.png"
        if kind == "text":
            path.write_text("no image")
        else:
            Image.new("1", (30_000, 10_000) if kind == "bomb" else (10_000, 6_000)).save(path)
        drop(browser, path)
        said = wait_for(browser, ".toast-body")
        assert ("60 megapixels; at most 50" if kind == "large" else "odd.png can't be read as an image") in said
        assert "/tmp" not in said
        assert "Traceback" not in page[1].stderr.read_text()

    def test_two_users_at_once(self, browser, page, tmp_path):
        sizes = [(200, 120), (90, 160)]
        windows = [browser.current_window_handle]
        browser.switch_to.new_window("window")
        browser.get(page[0])
        windows.append(browser.current_window_handle)
        for window, size in zip(windows, sizes):
            browser.switch_to.window(window)
            scene(*size).save(tmp_path / f"{size[0]}.png")
            drop(browser, tmp_path / f"{size[0]}.png")
        for window, size in zip(windows, sizes):
            browser.switch_to.window(window)
            wait_for(browser, "#overlay img", "src")
            image = browser.find_element(By.CSS_SELECTOR, "#overlay img")
            assert (int(image.get_property("naturalWidth")), int(image.get_property("naturalHeight"))) == size


def test_a_port_in_use_is_one_error(trained, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_script("demo.py", "--save_dir", trained / "saved_models", "--port", port, cwd=tmp_path)
    assert_one_error(done, f"port {port} can't be used")
    assert_one_error(run_script("demo.py", "--save_dir", "nowhere", cwd=tmp_path), "no checkpoint")
