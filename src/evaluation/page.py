"""A page in the browser: drop a photograph, see the pet's outline and cutout, move the threshold, download."""

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


def segment(predictor: Predictor, view: View, path: Path, threshold: float) -> list[Image.Image]:
    """Overlay, cutout and mask of an image. Raises UsageError: it can't be read, or has too many pixels."""
    sample, task = Sample("upload", path), predictor.task
    width, height = sample.displayed_size()
    if width * height > MAX_PIXELS:
        raise UsageError(f"This image has {math.ceil(width * height / 1e5) / 10} megapixels; at most 50 are accepted.")
    image, _ = view.read_at(sample)
    seen, _ = view.read_at(sample, view.size_of(sample))
    labels = predictor.segment(seen, width, height, 0.0 if task.classes else logit(threshold))
    cutout = Image.fromarray(cut_out(shown(image), matting_trimap(labels, task)))
    return [Image.fromarray(draw_outline(image, labels)), cutout, mask_image(labels, task)]


def make_handler(predictor: Predictor, view: View, folder: Path):
    """What the page calls: photograph and threshold give outline, cutout, and both files to download."""

    def handle(photograph: str | None, threshold: float):
        if photograph is None:
            return [None] * 4
        path = Path(photograph)
        try:
            # Gradio passes on the path of any file of this machine, if its `meta` is left out.
            if folder.resolve() not in path.resolve().parents:
                raise UsageError("Only uploaded photographs are accepted.")
            outline, cutout, mask = segment(predictor, view, path, threshold)
        except UsageError as error:
            raise gradio.Error(str(error).replace(f"{path.parent}{os.sep}", ""), print_exception=False) from None
        results = Path(tempfile.mkdtemp(dir=folder))
        cutout_file, mask_file = results / f"{path.stem}_cutout.png", results / f"{path.stem}_mask.png"
        write_png(cutout, cutout_file, rgb_profile(path))
        write_png(mask, mask_file)
        return outline, str(cutout_file), str(cutout_file), str(mask_file)

    return handle


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
            files = [
                gradio.DownloadButton(f"Download {name}", elem_id=f"download_{name}") for name in ("cutout", "mask")
            ]
        results = [outline, cutout, *files]
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
        page = build_page(make_handler(predictor, view, Path(folder)))
        print(f"The page is http://127.0.0.1:{config.port} ({path}). Ctrl-C ends it.", flush=True)
        guards = {"share": False, "max_file_size": MAX_BYTES, "app_kwargs": {"middleware": [Middleware(OwnSite)]}}
        try:
            page.launch(server_name="127.0.0.1", server_port=config.port, quiet=True, css=CHECKERBOARD, **guards)
        except OSError as error:
            raise UsageError(f"port {config.port} can't be used ({error}); name another with --port") from None
