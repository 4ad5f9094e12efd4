"""A page in the browser: drop a photograph, see the pet's outline and cutout, move the threshold, download."""

import functools
import importlib.util
import math
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.cache import SPARE_BYTES
from data.datasets import Preprocessing, preprocessing_of
from data.index import Sample
from data.inputs import read_input
from data.pixels import pixels_of, shown
from evaluation.config import DemoConfig
from evaluation.matting import cut_out, matting_trimap
from evaluation.predict import Predictor, label_map_at_size
from models.checkpoint import PUBLISHED, open_checkpoint
from models.task import BACKGROUND
from runtime.device import choose_precision, get_device
from runtime.errors import UsageError
from visual.panels import draw_outline, palette_image, with_profile, write_png

MAX_BYTES, MAX_PIXELS = 50_000_000, 50_000_000  # of an upload
MAX_TEXT = 1_000_000  # bytes of other requests, and of what surrounds an upload
MAX_WAITING, MAX_SESSIONS = 100, 1000  # photographs in the queue; browsers whose last photograph is remembered
UPLOAD = "/gradio_api/upload"
# Gradio would fetch other sites for whoever asks, or convert a video with ffmpeg. The page needs neither.
REFUSED = ("://", "/proxy=", "/process_recording")
# The page gets all it needs from this server; what Gradio would fetch from others is refused by the browser.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: data: blob:"


CHECKERBOARD = "#cutout img {background: repeating-conic-gradient(#bbb 0 25%, #fff 0 50%) 0 0 / 20px 20px}"


class Network:
    """A checkpoint's network, ready to segment."""

    def __init__(self, path: str, config: DemoConfig):
        model, content, _ = open_checkpoint(path, None, config.save_dir)
        self.preprocessing: Preprocessing = preprocessing_of(content)
        self.pixels = pixels_of(content["preprocessing"])
        precision = choose_precision(config.amp, get_device(config.device), self.preprocessing.image_size)
        self.predictor = Predictor(precision.to_device(model), precision)

    def sample(self, path: str) -> Sample:
        """An image as the network sees it.

        Raises:
            UsageError: it has too many pixels.
            DatasetError: it can't be read.
        """
        sample = Sample("upload", Path(path), pixels=self.pixels)
        width, height = sample.displayed_size()
        if width * height > MAX_PIXELS:
            raise UsageError(f"This image has {width * height / 1e6:.0f} megapixels; at most 50 are accepted here.")
        return sample

    @torch.inference_mode()
    def decide(self, path: str) -> torch.Tensor:
        """Decision logits (D, h, w) of an image. Raises what `sample` does."""
        image, _ = read_input(self.sample(path), self.preprocessing)
        return self.predictor.predict(image[None]).final[0].float().cpu()

    def draw(self, path: str, decision: torch.Tensor, threshold: float, folder: Path) -> tuple[np.ndarray, Path, Path]:
        """The overlay, and the files of cutout and mask in a new folder below `folder`."""
        image, _ = self.sample(path).read()
        height, width = image.shape[:2]
        logit = 0.0 if self.predictor.task.classes else math.log(threshold / (1 - threshold))
        labels = label_map_at_size(self.predictor.task, decision, logit, height, width)
        mask = (labels != BACKGROUND).astype(np.uint8)
        results = Path(tempfile.mkdtemp(dir=folder))
        stem = Path(path).stem
        cutout, mask_file = results / f"{stem}_cutout.png", results / f"{stem}_mask.png"
        task = self.predictor.task
        write_png(with_profile(cut_out(shown(image), matting_trimap(labels, task)), Path(path)), cutout)
        write_png(palette_image(labels, task) if task.classes else Image.fromarray(mask * 255), mask_file)
        return draw_outline(image, mask), cutout, mask_file


def build_handlers(config: DemoConfig, folder: Path):
    """What the page calls: `segment` for a new photograph or checkpoint, `redraw` for a new threshold."""
    import gradio

    opened = functools.lru_cache(maxsize=4)(lambda path, written: Network(path, config))

    def networks(path: str) -> Network:
        return opened(path, Path(path).stat().st_mtime_ns)  # a run may replace the file

    def told(function):
        """Takes uploads alone; what the user can mend is said in a sentence."""

        @functools.wraps(function)
        def call(path, *values):
            try:
                # Gradio passes on the path of any file of this machine, if its `meta` is left out.
                if path is not None and folder.resolve() not in Path(path).resolve().parents:
                    raise UsageError("Only uploaded photographs are accepted.")
                return function(path, *values)
            except UsageError as error:
                words = str(error).replace(f"{Path(path).parent}{os.sep}" if path else "", "")
                raise gradio.Error(words, print_exception=False) from None

        return call

    @told
    def segment(path, checkpoint, threshold):
        if path is None:
            return None, None, None, None, None
        decision = networks(checkpoint).decide(path)
        return (decision, *redraw(path, decision, checkpoint, threshold))

    @told
    def redraw(path, decision, checkpoint, threshold):
        if path is None or decision is None:
            return None, None, None, None
        overlay, cutout, mask = networks(checkpoint).draw(path, decision, threshold, folder)
        return overlay, str(cutout), str(cutout), str(mask)

    return segment, redraw


def build_page(config: DemoConfig, first: Path, folder: Path):
    """The page, as Gradio's Blocks.

    Args:
        config: the settings.
        first: the checkpoint that is chosen at first.
        folder: where results go until the server ends.
    """
    import gradio

    found = [first, *Path(config.save_dir).glob("*_best.pth"), *Path(config.save_dir).glob(PUBLISHED)]
    offered = sorted({path.resolve(): str(path) for path in reversed(found)}.values())
    segment, redraw = build_handlers(config, folder)

    async def unmoved(path):
        return path  # Gradio would download it where it is an address

    with gradio.Blocks(title="Pet segmentation", analytics_enabled=False) as page:
        gradio.Markdown("# Pet segmentation\nDrop a photograph, paste one, or use the webcam.")
        with gradio.Row():
            sources = ["upload", "webcam", "clipboard"]
            photograph = gradio.Image(label="Photograph", sources=sources, elem_id="photograph", type="filepath")
            # Gradio would open the file itself, and fail with a stack trace on odd ones.
            photograph.preprocess = lambda upload: upload and upload.path
            photograph.async_move_resource_to_block_cache = unmoved
            overlay = gradio.Image(label="Outline", elem_id="overlay", interactive=False)
            cutout = gradio.Image(label="Cutout", elem_id="cutout", interactive=False, type="filepath", format="png")
        with gradio.Row():
            threshold = gradio.Slider(0.05, 0.95, 0.5, step=0.05, label="Threshold", elem_id="threshold")
            checkpoint = gradio.Dropdown(offered, value=str(first), label="Checkpoint", elem_id="checkpoint")
            cutout_file = gradio.DownloadButton("Download cutout", elem_id="download_cutout")
            mask_file = gradio.DownloadButton("Download mask", elem_id="download_mask")
        decision = gradio.State()
        drawn = [overlay, cutout, cutout_file, mask_file]
        inputs = [photograph, checkpoint, threshold]
        for change in (photograph.change, checkpoint.change):
            change(segment, inputs, [decision, *drawn], api_visibility="private")
        threshold.release(redraw, [photograph, decision, checkpoint, threshold], drawn, api_visibility="private")
    return page.queue(api_open=False, max_size=MAX_WAITING)


def refusal(scope: dict, folder: Path) -> tuple[int, str] | None:
    """Status and reason where a request is not to be answered: who asks, what for, or how much is sent."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get(b"host", "")
    # A web site that the user has open elsewhere can send requests to this machine, under its own name, too.
    if host.partition(":")[0] not in ("127.0.0.1", "localhost"):
        return 403, "The page is http://127.0.0.1 or http://localhost."
    if headers.get(b"origin", f"http://{host}") != f"http://{host}":
        return 403, "Requests of other sites are refused."
    if any(words in scope["path"] for words in REFUSED):
        return 403, "The page does not need this."
    if scope["method"] == "POST":
        length = headers.get(b"content-length", "")
        if not length.isdecimal():
            return 411, "The length must be stated."
        if int(length) > MAX_TEXT + (MAX_BYTES if scope["path"] == UPLOAD else 0):
            return 413, "This is too large."
        if shutil.disk_usage(folder).free < SPARE_BYTES:
            return 507, "The disk is full."
    return None


class Guard:
    """ASGI middleware that refuses some requests, and adds the content security policy to every answer.

    Args:
        app: the page.
        folder: where uploads go.
    """

    def __init__(self, app, folder: Path):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send):
        """Passes a request on, or refuses it."""
        from starlette.formparsers import MultiPartException
        from starlette.responses import PlainTextResponse

        async def with_policy(message):
            if message["type"] == "http.response.start":
                added = (b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        async def whole():
            message = await receive()
            if message["type"] == "http.disconnect":
                raise MultiPartException("the browser went away")  # then Gradio deletes the part that it has
            return message

        app, refused = self.app, refusal(scope, self.folder) if scope["type"] == "http" else None
        if refused:
            app = PlainTextResponse(refused[1], refused[0])
        await app(scope, whole if scope.get("path") == UPLOAD else receive, with_policy)


def serve(config: DemoConfig) -> None:
    """Serves the page on this machine alone until it is stopped.

    Raises:
        UsageError: Gradio is not installed, or the port can't be used; see also `open_checkpoint`.
    """
    if not importlib.util.find_spec("gradio"):
        raise UsageError("the page needs Gradio: pip install -r requirements-demo.txt")
    _, _, path = open_checkpoint(config.model_path, config.model_name, config.save_dir)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads, too, are gone afterwards
        from starlette.middleware import Middleware

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # uploads are deleted then, too
        page = build_page(config, path, Path(folder))
        print(f"The page is http://127.0.0.1:{config.port} ({path}). Ctrl-C ends it.", flush=True)
        try:
            page.launch(
                server_name="127.0.0.1",
                server_port=config.port,
                max_file_size=MAX_BYTES,
                quiet=True,
                css=CHECKERBOARD,
                share=False,
                footer_links=[],
                state_session_capacity=MAX_SESSIONS,
                enable_monitoring=False,
                app_kwargs={"middleware": [Middleware(Guard, folder=Path(folder))]},
            )
        except OSError as error:
            raise UsageError(f"port {config.port} can't be used ({error}); name another with --port") from None
