"""Segments images and writes masks, overlays, cutouts and panels.

python src/inference.py photo.jpg
"""

from pathlib import Path

from data.names import IMAGE_SUFFIXES
from evaluation.config import InferConfig
from runtime import cli


def build_parser() -> cli.Parser:
    """Flags of inference.py."""
    return cli.Parser("inference.py", __doc__, InferConfig)


def main(argv=None) -> None:
    """Reads the flags and segments."""
    overrides = build_parser().parse_overrides(argv)
    # In `--model_path FILE photo.jpg` the flag takes both.
    words = overrides.get("model_path", [])
    photographs = [word for word in words if Path(word).is_dir() or Path(word).suffix.lower() in IMAGE_SUFFIXES]
    if photographs and photographs != words:
        overrides["model_path"] = [word for word in words if word not in photographs]
        overrides["photographs"] = photographs + overrides.get("photographs", [])
    if "photographs" in overrides and "data_path" in overrides:  # the shell has replaced the pattern behind the flag
        overrides["photographs"] = [overrides.pop("data_path"), *overrides["photographs"]]
    config = InferConfig(**overrides)
    cli.import_torch()
    from evaluation.infer import infer

    infer(config)


if __name__ == "__main__":
    cli.run(main)
