"""Trains a network.

python src/train.py --data_path dataset --model_name unet --epochs 10
python src/train.py --model_name unet --resume --epochs 2
"""

from pathlib import Path

from models.names import DENOISING
from runtime import cli
from runtime.errors import UsageError
from training.config import LESS_MEMORY, TrainConfig


def build_parser() -> cli.Parser:
    """Flags of train.py."""
    return cli.Parser("train.py", "Train UNet or ResNet34-UNet to segment pets.", TrainConfig)


def main(argv=None) -> None:
    """Reads the flags and trains."""
    overrides = build_parser().parse_overrides(argv)
    if overrides.get("recipe") == DENOISING:
        raise UsageError(f"--recipe {DENOISING} is what pretrain.py sets; use that script")
    overrides.update({name: None for name in ("augment", "progressive") if overrides.get(name) == "off"})
    if "folds" in overrides:
        for name in ("save_dir", "log_dir"):
            folder = overrides.get(name, getattr(TrainConfig(), name))
            overrides[name] = str(Path(folder) / f"fold_{overrides.get('fold', 1)}")
    cli.import_torch()
    from training.setup import start

    start(overrides)


if __name__ == "__main__":
    cli.run(main, LESS_MEMORY)
