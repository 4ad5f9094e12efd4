"""Scores a checkpoint.

python src/evaluate.py --model_name unet --model_path saved_models/unet_best.pth --data_path dataset
"""

import dataclasses

from evaluation.config import EvalConfig, check_flags
from runtime import cli


def build_parser() -> cli.Parser:
    """Flags of evaluate.py."""
    return cli.Parser("evaluate.py", "Score a checkpoint on a part of the dataset.", EvalConfig)


def main(argv=None) -> None:
    """Reads the flags and scores."""
    overrides = build_parser().parse_overrides(argv)
    config = EvalConfig(**overrides)
    check_flags(config, overrides)
    if config.tile:
        config = dataclasses.replace(config, original_size=True)
    cli.import_torch()
    from evaluation.run import start

    start(config)


if __name__ == "__main__":
    cli.run(main)
