"""Downloads from servers that need not be honest: bounded in time and size, and verified before the file is there."""

import hashlib
import http.client
import threading
import time
import urllib.request
from urllib.error import URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from runtime.files import atomic_write

MAX_BYTES = 1_000_000_000  # of a file; the largest that is fetched has 0.8 GB
SLOWEST = 1000  # bytes a second, on average; a server that is slower has stalled
CHUNK = 1 << 18


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, nor to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """The next request. Raises URLError: its scheme is another one."""
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, file, algorithm: str, digest: str, seconds: float) -> None:
    """Downloads a file, whole and verified or not at all.

    Args:
        url: its address; redirects are followed.
        file: where it goes.
        algorithm: of the checksum, as hashlib names it.
        digest: what the checksum starts with, in hexadecimal.
        seconds: how long the server may take to answer, and how long it may be silent.

    Raises:
        OSError: there is no such file, it is too large or not the right one, or the server does not answer.
    """
    checksum, received, began = hashlib.new(algorithm, usedforsecurity=False), 0, time.monotonic()
    try:
        with (
            _answer(url, seconds) as response,
            atomic_write(file, "wb") as stream,
            tqdm(total=response.length, unit="B", unit_scale=True, disable=None) as bar,
        ):
            announced = response.length or 0
            while chunk := _chunk(response):
                received += len(chunk)
                if max(received, announced) > MAX_BYTES:
                    raise OSError(f"it has more than {MAX_BYTES / 1e9:.1f} GB")
                if time.monotonic() - began > seconds + received / SLOWEST:
                    raise TimeoutError("timed out")
                checksum.update(chunk)
                stream.write(chunk)
                bar.update(len(chunk))
            if received < announced:
                raise OSError(f"it broke off after {received:,} of {announced:,} bytes")
            if not checksum.hexdigest().startswith(digest):
                raise OSError(f"its checksum is not {digest}")
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


def _chunk(response) -> bytes:
    try:
        return response.read1(CHUNK)
    except OSError as error:  # its errno would be taken for one of the file
        raise OSError(str(error.strerror or error)) from None


def _answer(url: str, seconds: float):
    # In a thread of its own, because a name that can't be resolved may block for minutes, and a server may send its
    # headers byte by byte: beyond any socket's timeout.
    outcome: list = []
    request = urllib.request.Request(url, headers={"User-Agent": "pet-segmentation"})

    def ask():
        try:
            outcome.append(urllib.request.build_opener(SafeRedirects).open(request, timeout=seconds))
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer from {url} within {seconds} seconds")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]
