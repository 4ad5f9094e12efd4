"""The settings of evaluate.py, inference.py, export.py and demo.py: one field per flag."""

import math
from dataclasses import dataclass

from data.names import SUBSETS
from models.names import known_model
from runtime.errors import UsageError
from runtime.options import CommonConfig, batch_size_option, fraction, option, whole_number, words_of

# What inference.py writes, and what the files are called after the image.
RESULTS = {
    "masks": "mask",
    "probabilities": "probability",
    "overlays": "overlay",
    "cutouts": "cutout",
    "panels": "panel",
    "trimaps": "trimap",  # of networks that learn the border
}
POLYGONS = ("labelme", "coco", "yolo")  # that it writes, too, for annotation tools
# What a format's file is called after the checkpoint's stem.
EXPORT_FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "onnx-int8": "_int8.onnx", "weights": "_weights.pth"}
RESIZE = "how the network sees images: square, squashed; keep, in their shape, the longer side as --image_size; tile, "
RESIZE += "at their own size in tiles, where they are larger"


def model_path_option(several: bool = False):
    text = "checkpoint; by default <model>_best.pth in --save_dir, or pets.pth"
    text += "; several: their mean probabilities" * several
    return option(None, text, aliases=("--model",), metavar="FILE", group="model", nargs="+" if several else None)


def model_name_option():
    text = "architecture; it must match the checkpoint, which says it by default"
    return option(None, text, known_model, aliases=("--model_type",), metavar="NAME")


def threshold(text: str) -> float | str:
    """Returns a probability, or `auto`."""
    return text if text == "auto" else fraction(text)


def logit(probability: float) -> float:
    """The decision logit that means this probability."""
    return math.log(probability / (1 - probability))


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CommonConfig):
    """What evaluate.py and inference.py share."""

    subset: str = option("test", "part of the dataset; all: every labelled image", choices=SUBSETS, group="data")
    model_path: list[str] | None = model_path_option(several=True)
    model_name: str | None = model_name_option()
    image_size: int | None = option(
        None, "side at which the network sees images; by default as trained", whole_number(16, 4096), metavar="PX"
    )
    resize: str = option("square", RESIZE, choices=("square", "keep", "tile"))
    tta: bool = option(
        False,
        "test-time augmentation: average over three scales, each straight and flipped; six times the work",
        group="scoring",
    )

    def refuse_for_classes(self, task) -> None:
        """Raises UsageError where a setting means pet against background, and the task has named classes."""
        given = [name for name in ("ignore_border", "calibrate", "label_errors") if getattr(self, name, None)]
        given += ["threshold"] if self.threshold != 0.5 else []
        given += [f"save {name}" for name in ("probabilities", "trimaps") if name in getattr(self, "save", ())]
        if task.classes and given:
            raise UsageError(f"--{given[0]} is not for networks of named classes ({task.name}); leave it out")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(PredictConfig):
    """The settings of evaluate.py."""

    threshold: float | str = option(
        0.5,
        "probability above which a pixel is pet; auto: the best one for the validation images",
        threshold,
        metavar="P|auto",
        group="scoring",
    )
    allow_seen: bool = option(False, "score images that the model was trained on, too")
    original_size: bool = option(False, "score at the images' own sizes instead of the network's")
    ignore_border: bool = option(False, "leave the border of the trimaps out")
    calibrate: bool = option(
        False,
        "temperature scaling: fit a temperature to the validation images, and write <stem>_calibrated.pth with it",
    )
    compare: str | None = option(
        None, "second checkpoint; print the differences of the scores with bootstrap intervals", metavar="FILE"
    )
    json: str | None = option(None, "write every figure into this file", metavar="FILE", group="results")
    report: str | None = option(
        None,
        "write scores, a row for each image, a plot (calibration, or confusion of classes) and panels of the worst "
        "images into this folder",
        aliases=("--output_path", "--output_dir"),
        metavar="DIR",
    )
    label_errors: bool = option(
        False,
        "with --report: rank images by how wrong their masks look, and draw the first; of several checkpoints each "
        "takes its own validation images, and all together the test images",
    )


def check_flags(config: EvalConfig) -> None:
    """Raises UsageError where flags of evaluate.py contradict each other."""
    several = len(config.model_path or ()) > 1
    if config.resize == "tile" and config.tta:
        raise UsageError("--resize tile and --tta can't be combined: there would be no plain score to compare with")
    for name, asked in (("threshold auto", config.threshold == "auto"), ("calibrate", config.calibrate)):
        if asked and config.subset != "test":
            raise UsageError(f"--{name} uses the validation images, so score others: --subset test")
        if asked and several:
            raise UsageError(f"--{name} is for one checkpoint, which was trained on no validation image; name one")
    if config.label_errors and not config.report:
        raise UsageError("--label_errors needs a folder for what it finds: --report DIR")
    differing = [name for name in ("tta", "image_size", "ignore_border") if getattr(config, name)]
    if config.calibrate and (differing or config.resize != "square"):
        name = (differing or ["resize"])[0]
        raise UsageError(f"--calibrate is for the network as it was trained; leave --{name} out")


@dataclass(frozen=True, kw_only=True)
class InferConfig(PredictConfig):
    """The settings of inference.py."""

    photographs: list[str] = option(
        (), "photographs, folders or patterns, instead of --data_path", nargs="*", metavar="PHOTO", group="most used"
    )
    data_path: str = option("dataset", "dataset, folder, image or pattern", metavar="PATH", group="most used")
    batch_size: int = batch_size_option(1)
    threshold: float = option(0.5, "probability above which a pixel is pet", fraction, metavar="P", group="scoring")
    recursive: bool = option(False, "images in all folders below --data_path, too", group="data")
    save_results: bool = option(False, "write results of a labelled dataset, too", group="results")
    output_path: str | None = option(
        None,
        "write results, to this folder; those of photographs go to inference_results by default",
        aliases=("--output_dir",),
        metavar="DIR",
    )
    save: list[str] = option(
        (),
        f"which results: {','.join([*RESULTS, *POLYGONS])} (files of polygons for annotation tools); by default "
        "masks,panels, and of photographs cutouts, too",
        words_of([*RESULTS, *POLYGONS], "result"),
        metavar="NAMES",
    )
    rank_uncertain: str | None = option(
        None,
        "list images without masks in this CSV file, the most uncertain first (mean entropy near the outline)",
        metavar="FILE",
    )
    matting: str = option(
        "guided", "what finds the edges of cutouts; pymatting is an extra", choices=("guided", "pymatting")
    )


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The settings of export.py."""

    model_path: str | None = model_path_option()
    model_name: str | None = model_name_option()
    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR", group="model")
    log_dir: str = option("logs", "accepted as in the other scripts; nothing is logged", metavar="DIR", group="model")
    formats: list[str] = option(
        ("pt2",),
        f"which ones, with commas: {', '.join(EXPORT_FORMATS)}",
        words_of(EXPORT_FORMATS, "format"),
        metavar="NAMES",
    )
    output_path: str | None = option(
        None, "where the files go; by default beside the checkpoint", aliases=("--output_dir",), metavar="DIR"
    )
    data_path: str | None = option(None, "images to check the files on; by default random shapes", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The settings of demo.py."""

    model_path: str | None = model_path_option()
    model_name: str | None = model_name_option()
    save_dir: str = option("saved_models", "folder of checkpoints that the page offers", metavar="DIR")
    port: int = option(7860, "the page is http://127.0.0.1:PORT", whole_number(1, 65535), metavar="PORT")
    device: str = option("auto", "auto: CUDA, then MPS, then the CPU", choices=("auto", "cuda", "mps", "cpu"))
    amp: str = option("auto", "precision, as in inference.py", choices=("auto", "off", "bf16", "fp16"))
