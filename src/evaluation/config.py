"""The settings of evaluate.py and inference.py: one field per flag."""

import math
from dataclasses import dataclass

from data.names import SUBSETS
from runtime.errors import UsageError
from runtime.options import (
    CommonConfig,
    batch_size_option,
    cache_option,
    fraction,
    model_name_option,
    model_path_option,
    option,
    whole_number,
    words_of,
)

RESULTS = {
    "masks": "mask",
    "probabilities": "probability",
    "overlays": "overlay",
    "cutouts": "cutout",
    "panels": "panel",
    "trimaps": "trimap",  # of networks that learn the border
}


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CommonConfig):
    """What evaluate.py and inference.py share."""

    subset: str = option("test", "part of the dataset; all: every labelled image", choices=SUBSETS, group="data")
    model_path: list[str] | None = model_path_option(several=True)
    model_name: str | None = model_name_option()
    image_size: int | None = option(
        None, "side at which the network sees images; by default as trained", whole_number(16, 4096), metavar="PX"
    )
    resize: str | None = option(
        None, "square: squash images; keep: their shape, the longer side as --image_size", choices=("square", "keep")
    )
    tile: bool = option(
        False, "slide over images larger than --image_size, at their own size; evaluate.py scores at that size, too"
    )
    tta: bool = option(
        False, "average probabilities over three scales, each straight and flipped; six times the work", group="scoring"
    )
    threshold: float = option(0.5, "probability above which a pixel is pet", fraction, metavar="P")

    @property
    def logit_threshold(self) -> float:
        """The threshold for decision logits."""
        return math.log(self.threshold / (1 - self.threshold))

    def refuse_thresholds(self, task) -> None:
        """Raises UsageError where a setting means pet against background, and the task has named classes."""
        names = ("find_threshold", "ignore_border", "calibrate", "reliability", "label_errors")
        given = [name for name in names if getattr(self, name, None)]
        given += ["threshold"] if self.threshold != 0.5 else []
        given += [f"save {name}" for name in ("probabilities", "trimaps") if name in getattr(self, "save", ())]
        if task.classes and given:
            raise UsageError(f"--{given[0]} is not for networks of named classes ({task.name}); leave it out")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(PredictConfig):
    """The settings of evaluate.py."""

    cache: str = cache_option()
    allow_seen: bool = option(False, "score images that the model was trained on, too")
    original_size: bool = option(False, "score at the images' own sizes instead of the network's")
    ignore_border: bool = option(False, "leave the border of the trimaps out")
    tolerance: int = option(2, "how far apart outlines may be and still agree", whole_number(0, 100), metavar="PX")
    find_threshold: bool = option(False, "take the threshold that is best for the validation images")
    calibrate: bool = option(
        False, "fit a temperature to the validation images, and write <stem>_calibrated.pth with it"
    )
    reliability: str | None = option(
        None, "plot accuracy against confidence (reliability diagram) to this PNG", metavar="FILE"
    )
    confusion: str | None = option(None, "draw the confusion matrix of named classes to this PNG", metavar="FILE")
    compare: str | None = option(None, "a second checkpoint: difference to the first, and its interval", metavar="FILE")
    json: str | None = option(None, "write every figure into this file", metavar="FILE", group="results")
    csv: str | None = option(None, "write one row per image into this file", metavar="FILE")
    worst: int | None = option(None, "draw panels of the N worst images", whole_number(1), metavar="N")
    label_errors: int | None = option(
        None,
        "rank images by how wrong their masks look, and draw the first N; of several checkpoints each takes its own "
        "validation images, and all together the test images",
        whole_number(1),
        metavar="N",
    )
    output_path: str = option(
        "worst_panels", "where --worst and --label_errors draw", aliases=("--output_dir",), metavar="DIR"
    )


def check_flags(config: EvalConfig, overrides: dict) -> None:
    """Raises UsageError where flags of evaluate.py contradict each other."""
    several = len(config.model_path or ()) > 1
    if config.tile and config.tta:
        raise UsageError("--tile and --tta can't be combined: there would be no score without augmentation to compare")
    for name in ("find_threshold", "calibrate"):  # they use the validation images
        if getattr(config, name) and config.subset != "test":
            raise UsageError(f"--{name} uses the validation images, so score others: --subset test")
    if config.find_threshold and "threshold" in overrides:
        raise UsageError("--find_threshold and --threshold exclude each other; leave one of them out")
    if config.find_threshold and several:
        raise UsageError("--find_threshold needs images that no member was trained on; give --threshold")
    if config.calibrate and several:
        raise UsageError("--calibrate changes one checkpoint; name one")
    for name in ("tta", "tile", "image_size", "resize", "ignore_border"):
        if config.calibrate and getattr(config, name):
            raise UsageError(f"--calibrate is for the network as it was trained; leave --{name} out")


@dataclass(frozen=True, kw_only=True)
class InferConfig(PredictConfig):
    """The settings of inference.py."""

    photographs: list[str] = option(
        (), "photographs, folders or patterns, instead of --data_path", nargs="*", metavar="PHOTO", group="data"
    )
    data_path: str = option("dataset", "dataset, folder, image or pattern", metavar="PATH", group="data")
    batch_size: int = batch_size_option(1)
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
        f"which results: {','.join(RESULTS)}; by default masks,panels, and of photographs cutouts, too",
        words_of(RESULTS, "result"),
        metavar="NAMES",
    )
    matting: str = option(
        "guided", "what finds the edges of cutouts; pymatting is an extra", choices=("guided", "pymatting")
    )


# What a format's file is called after the checkpoint's stem.
EXPORT_FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "onnx-int8": "_int8.onnx", "weights": "_weights.pth"}


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
