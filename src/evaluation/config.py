"""The settings of evaluate.py, inference.py, export.py and demo.py: one field per flag."""

import math
from dataclasses import dataclass

from data.names import SUBSETS
from models.names import known_model
from runtime.errors import UsageError
from runtime.options import CommonConfig, batch_size_option, fraction, option, whole_number, words_of

# What inference.py writes for each image, and what the files are called after it.
RESULTS = {
    "masks": "mask",
    "probabilities": "probability",
    "overlays": "overlay",
    "cutouts": "cutout",
    "panels": "panel",
    "trimaps": "trimap",  # of networks that learn the border
}
POLYGONS = ("labelme", "coco", "yolo")  # that it writes, too, for annotation tools
SAVED = (*RESULTS, *POLYGONS, "uncertain")
# What a format's file is called after the checkpoint's stem.
EXPORT_FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "onnx-int8": "_int8.onnx", "weights": "_weights.pth"}

CHECKPOINT = "checkpoint; by default <model>_best.pth in --save_dir, or pets.pth"
MODEL = "architecture; it must match the checkpoint, which says it by default"
RESIZE = "how the network sees images: square, squashed; keep, in their shape; tile, at their own size in tiles"
PATH = "dataset, folder, image or pattern; 'photos/**/*.jpg' means those in all folders below"
THRESHOLD = "probability above which a pixel is pet"
OUTPUT = "write to this folder; photographs' default: inference_results"
BESIDE = "where the files go; by default beside the checkpoint"
REPORT = "write scores, a row for each image and panels of the worst images into this folder"
LABEL_ERRORS = "with --report: rank images by how wrong their masks look; of folds each ranks its validation images"
SAVE = f"results: {','.join(SAVED)} (images to label next); default: masks,panels, of photographs cutouts, too"


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
    model_path: list[str] | None = option(
        None, f"{CHECKPOINT}; several: their mean", aliases=("--model",), metavar="FILE", group="model", nargs="+"
    )
    model_name: str | None = option(None, MODEL, known_model, aliases=("--model_type",), metavar="NAME")
    image_size: int | None = option(None, "image side; by default as trained", whole_number(16, 4096), metavar="PX")
    resize: str = option("square", RESIZE, choices=("square", "keep", "tile"))
    tta: bool = option(False, "test-time augmentation: three scales, also flipped; six times the work", group="scoring")

    def refuse_for_classes(self, task) -> None:
        """Raises UsageError where a setting means pet against background, and the task has named classes."""
        given = ["label_errors"] * getattr(self, "label_errors", False) + ["threshold"] * (self.threshold != 0.5)
        given += [f"save {name}" for name in ("probabilities", "trimaps") if name in getattr(self, "save", ())]
        if task.classes and given:
            raise UsageError(f"--{given[0]} is not for networks of named classes ({task.name}); leave it out")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(PredictConfig):
    """The settings of evaluate.py. Raises UsageError: they contradict each other."""

    threshold: float | str = option(0.5, f"{THRESHOLD}; auto: the best for validation", threshold, metavar="P|auto")
    allow_seen: bool = option(False, "score images that the model was trained on, too")
    original_size: bool = option(False, "score at the images' own sizes instead of the network's")
    compare: str | None = option(None, "second checkpoint; print how its scores differ, with intervals", metavar="FILE")
    json: str | None = option(None, "write every figure into this file", metavar="FILE", group="results")
    report: str | None = option(None, REPORT, aliases=("--output_path", "--output_dir"), metavar="DIR")
    label_errors: bool = option(False, LABEL_ERRORS)

    def __post_init__(self):
        if self.threshold == "auto" and self.subset != "test":
            raise UsageError("--threshold auto uses the validation images, so score others: --subset test")
        if self.threshold == "auto" and len(self.model_path or ()) > 1:
            raise UsageError("--threshold auto is for one checkpoint, trained on no validation image; name one")
        if self.label_errors and not self.report:
            raise UsageError("--label_errors needs a folder for what it finds: --report DIR")


@dataclass(frozen=True, kw_only=True)
class InferConfig(PredictConfig):
    """The settings of inference.py."""

    photographs: list[str] = option((), "images, or folders", nargs="*", metavar="PHOTO", group="most used")
    data_path: str = option("dataset", PATH, metavar="PATH", group="most used")
    batch_size: int = batch_size_option(1)
    threshold: float = option(0.5, THRESHOLD, fraction, metavar="P", group="scoring")
    save_results: bool = option(False, "write results of a labelled dataset, too", group="results")
    output_path: str | None = option(None, OUTPUT, aliases=("--output_dir",), metavar="DIR")
    save: list[str] = option((), SAVE, words_of(SAVED, "result"), metavar="NAMES")
    matting: str = option("guided", "finds edges of cutouts; pymatting is an extra", choices=("guided", "pymatting"))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What export.py and demo.py share."""

    model_path: str | None = option(None, CHECKPOINT, aliases=("--model",), metavar="FILE", group="model")
    model_name: str | None = option(None, MODEL, known_model, aliases=("--model_type",), metavar="NAME")
    save_dir: str = option("saved_models", "folder of checkpoints", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelConfig):
    """The settings of export.py."""

    formats: list[str] = option(
        ("pt2",), f"with commas: {', '.join(EXPORT_FORMATS)}", words_of(EXPORT_FORMATS, "format"), metavar="NAMES"
    )
    output_path: str | None = option(None, BESIDE, aliases=("--output_dir",), metavar="DIR")
    data_path: str | None = option(None, "images to check the files on; by default random shapes", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(ModelConfig):
    """The settings of demo.py."""

    port: int = option(7860, "the page is http://127.0.0.1:PORT", whole_number(1, 65535), metavar="PORT")
    device: str = option("auto", "auto: CUDA, then MPS, then the CPU", choices=("auto", "cuda", "mps", "cpu"))
    amp: str = option("auto", "precision, as in inference.py", choices=("auto", "off", "bf16", "fp16"))
