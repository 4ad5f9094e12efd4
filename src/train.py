"""Trains a network.

python src/train.py --data_path dataset --model_name unet --epochs 10
python src/train.py --model_name unet --resume --epochs 2
"""

import argparse
from pathlib import Path

from models.names import model_or_default
from runtime import cli
from training.config import LESS_MEMORY, TrainConfig


def build_parser() -> cli.Parser:
    """Flags of train.py."""
    parser = cli.Parser("train.py", __doc__, TrainConfig)
    parser.add_argument(
        "--model_type",
        dest="model_name",
        type=model_or_default,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="as --model_name; an unknown name trains the default",
    )
    return parser


def main(argv=None) -> None:
    """Reads the flags and trains."""
    flags = build_parser().parse_overrides(argv)
    if "fold" in flags:
        for name in ("save_dir", "log_dir"):
            folder = flags.get(name, getattr(TrainConfig, name))
            flags[name] = str(Path(folder) / f"fold_{flags['fold'].partition('/')[0]}")
    cli.import_torch()
    from training.setup import start

    start(flags)


if __name__ == "__main__":
    cli.run(main, LESS_MEMORY)
