"""A page in the browser: drop a photograph, see the pet's outline and cutout, move the threshold, download."""

import functools
import math
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from data.image_io import rgb_profile
from data.layout import Sample
from data.pixels import shown
from data.view import View
from evaluation.config import DemoConfig, logit
from evaluation.matting import cut_out, matting_trimap
from evaluation.predict import Predictor
from models.checkpoint import open_checkpoint
from runtime.cli import handle_signals
from runtime.device import choose_precision, get_device
from runtime.errors import UsageError
from visual.panels import draw_outline, mask_image, write_png

try:
    import gradio
    from starlette.datastructures import Headers
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
except ImportError:
    raise UsageError("the page needs Gradio: pip install -r requirements-demo.txt") from None

MAX_BYTES, MAX_PIXELS = 50_000_000, 50_000_000  # of an upload
CHECKERBOARD = "#cutout img {background: repeating-conic-gradient(#bbb 0 25%, #fff 0 50%) 0 0 / 20px 20px}"


def segment(predictor: Predictor, view: View, folder: Path, photograph: str | None, threshold: float) -> list:
    """What the page calls: gives outline, cutout, and both files to download. Results go into the folder of uploads."""
    if photograph is None:
        return [None] * 4
    path, task = Path(photograph), predictor.task
    try:
        # Gradio passes on the path of any file of this machine, if its `meta` is left out.
        if folder.resolve() not in path.resolve().parents:
            raise UsageError("Only uploaded photographs are accepted.")
        sample = Sample("upload", path)
        width, height = sample.displayed_size()
        if width * height > MAX_PIXELS:
            megapixels = math.ceil(width * height / 1e5) / 10
            raise UsageError(f"This image has {megapixels} megapixels; at most 50 are accepted.")
        image, _ = view.read_at(sample)
        seen, _ = view.read_at(sample, view.size_of(sample))
    except UsageError as error:
        raise gradio.Error(str(error).replace(f"{path.parent}{os.sep}", ""), print_exception=False) from None
    labels = predictor.segment(seen, width, height, 0.0 if task.classes else logit(threshold))
    results = Path(tempfile.mkdtemp(dir=folder))
    cutout, mask = results / f"{path.stem}_cutout.png", results / f"{path.stem}_mask.png"
    write_png(Image.fromarray(cut_out(shown(image), matting_trimap(labels, task))), cutout, rgb_profile(path))
    write_png(mask_image(labels, task), mask)
    return [Image.fromarray(draw_outline(image, labels)), str(cutout), str(cutout), str(mask)]


def build_page(handler) -> gradio.Blocks:
    """The page around a handler."""
    with gradio.Blocks(title="Pet segmentation") as page:
        gradio.Markdown("# Pet segmentation\nDrop a photograph, paste one, or use the webcam.")
        with gradio.Row():
            sources = ["upload", "webcam", "clipboard"]
            photograph = gradio.Image(label="Photograph", sources=sources, elem_id="photograph", type="filepath")
            # Gradio would open the file itself, and fail with a stack trace on odd ones.
            photograph.preprocess = lambda upload: upload and upload.path
            outline = gradio.Image(label="Outline", elem_id="overlay", interactive=False)
            cutout = gradio.Image(label="Cutout", elem_id="cutout", interactive=False, type="filepath", format="png")
        with gradio.Row():
            threshold = gradio.Slider(0.05, 0.95, 0.5, step=0.05, label="Threshold", elem_id="threshold")
            cutout_file = gradio.DownloadButton("Download cutout", elem_id="download_cutout")
            mask_file = gradio.DownloadButton("Download mask", elem_id="download_mask")
        results = [outline, cutout, cutout_file, mask_file]
        gradio.on([photograph.change, threshold.release], handler, [photograph, threshold], results)
    return page


class OwnSite:
    """ASGI middleware that refuses what pages of other sites send: browsers send it to this machine, too."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Passes a request on, or refuses it."""
        app = self.app
        if "headers" in scope:  # not where the server starts
            headers = Headers(scope=scope)
            host = headers.get("host", "")
            # The name of another site may lead here, with an origin of the same name.
            is_own = host.partition(":")[0] in ("127.0.0.1", "localhost")
            if not is_own or headers.get("origin", f"http://{host}") != f"http://{host}":
                app = PlainTextResponse("Requests of other sites are refused.", 403)
        await app(scope, receive, send)


def serve(config: DemoConfig) -> None:
    """Serves the page on this machine alone until it is stopped. Raises UsageError: the port can't be used."""
    model, checkpoint, path = open_checkpoint(config.model_path, config.model_name, config.save_dir)
    view = View.of(checkpoint)
    precision = choose_precision(config.amp, get_device(config.device), view.size)
    predictor = Predictor(precision.to_device(model), precision)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_RUN_HISTORY"] = "False"
    handle_signals(lambda signum, _frame: sys.exit(128 + signum))  # so that uploads are deleted
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads, too
        page = build_page(functools.partial(segment, predictor, view, Path(folder)))
        print(f"The page is http://127.0.0.1:{config.port} ({path}). Ctrl-C ends it.", flush=True)
        guards = {"share": False, "max_file_size": MAX_BYTES, "app_kwargs": {"middleware": [Middleware(OwnSite)]}}
        try:
            page.launch(server_name="127.0.0.1", server_port=config.port, quiet=True, css=CHECKERBOARD, **guards)
        except OSError as error:
            raise UsageError(f"port {config.port} can't be used ({error}); name another with --port") from None
