"""Downloads from servers that lie, stall, or never end."""

import hashlib
import socketserver
import threading
import time
import urllib.request
from urllib.error import URLError

import pytest

from runtime import fetch as fetch_module
from runtime.fetch import fetch

CONTENT = b"what was asked for" * 1000
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n"


def redirect(address: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {address}\r\n\r\n".encode()


def forever(beginning: bytes, more: bytes, pause: float):
    """Something, and then more and more of it."""
    yield beginning
    while True:
        time.sleep(pause)
        yield more


# What the server sends, and what is said of it; "" where the file is downloaded.
ANSWERS = {
    "whole": ([OK + LENGTH % len(CONTENT) + CONTENT], ""),
    "without-length": ([OK + b"\r\n" + CONTENT], ""),
    "length-of-letters": ([OK + b"Content-Length: many\r\n\r\n" + CONTENT], ""),
    "negative-length": ([OK + LENGTH % -5 + CONTENT], ""),
    "other-content": ([OK + LENGTH % 5 + b"other"], "its checksum is not"),
    "nothing": ([OK + LENGTH % 0], "its checksum is not"),
    "length-too-large": ([OK + LENGTH % 90_000 + CONTENT], "broke off after 18,000 of 90,000 bytes"),
    "length-too-small": ([OK + LENGTH % 10 + CONTENT], "its checksum is not"),
    "length-of-a-disk": ([OK + LENGTH % 10**15 + CONTENT], "more than 0.0 GB"),
    "no-end": (lambda: forever(OK + b"\r\n", b"x" * 50_000, 0), "more than 0.0 GB"),
    "silence": (lambda: forever(b"", b"", 9), "no answer|timed out"),
    "silence-in-the-middle": (lambda: forever(OK + LENGTH % 90_000 + b"x", b"", 9), "timed out"),
    "a-byte-now-and-then": (lambda: forever(OK + LENGTH % 90_000, b"x", 0.02), "timed out"),
    "headers-now-and-then": (lambda: forever(OK, b"X: y\r\n", 0.02), "no answer|HTTPException"),
    "long-header": ([OK + b"X: " + b"y" * 100_000], "LineTooLong"),
    "many-headers": ([OK + b"X: y\r\n" * 200], "HTTPException: got more than 100 headers"),
    "no-http": ([b"220 ftp.example.org\r\n"], "BadStatusLine"),
    "empty": ([b""], "without response"),
    "broken-chunks": ([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nwhat \r\nzz\r\n"], "IncompleteRead|ValueError"),
    "not-found": ([b"HTTP/1.1 404 Not Found\r\n\r\n"], "404"),
    "redirected": ([redirect("whole")], ""),
    "in-a-circle": ([redirect("in-a-circle")], "infinite loop"),
    "to-a-file": ([redirect("file:///etc/passwd")], "not allowed"),
    "to-ftp": ([redirect("ftp://127.0.0.1:9/passwd")], "redirects to ftp:"),
    "to-nonsense": ([redirect("http://[::1/x")], "Invalid"),
    "to-nobody": ([redirect("http://127.0.0.1:9/x")], "refused"),
}


class Liar(socketserver.BaseRequestHandler):
    def handle(self):
        head = self.request.recv(65536)
        answer = ANSWERS[head.split()[1].decode().lstrip("/")][0]
        try:
            for part in answer() if callable(answer) else answer:
                self.request.sendall(part)
        except OSError:
            pass  # the client has seen enough


@pytest.fixture(scope="module")
def address():
    """Of a server that gives ANSWERS."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Liar)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_a_server_sends_is_the_file_or_an_error(address, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(fetch_module, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(fetch_module, "SLOWEST", 10_000)
    what = f"{address}/{kind}", tmp_path / "file", "sha256", hashlib.sha256(CONTENT).hexdigest()[:8]
    words, began = ANSWERS[kind][1], time.monotonic()
    if words:
        with pytest.raises(OSError, match=words):
            fetch(*what, seconds=0.5)
        assert not list(tmp_path.iterdir())
    else:
        fetch(*what, seconds=30)
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert len(list(tmp_path.iterdir())) == 1
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("other", ["http://example.org/x", "ftp://example.org/x"])
def test_a_redirect_to_what_is_not_encrypted_is_refused(other):
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(URLError, match="not https"):
        fetch_module.SafeRedirects().redirect_request(request, None, 302, "Found", {}, other)


def test_a_name_that_is_not_resolved_times_out(tmp_path, monkeypatch):
    def never(*_args, **_options):
        time.sleep(3)
        raise OSError("too late")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", never)
    with pytest.raises(TimeoutError, match="within 0.2 seconds"):
        fetch("https://example.org/weights.pth", tmp_path / "file", "sha256", "", 0.2)
