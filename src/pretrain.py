"""Pre-trains a network on images without masks: it learns to find noise that is added to them.

python src/pretrain.py --data_path folder_of_images --model_name unet_small --epochs 20
python src/train.py --data_path dataset --init saved_models/pretrained/unet_small_best.pth
"""

from models.names import DENOISING
from runtime import cli
from training.config import LESS_MEMORY, RECIPES, TrainConfig

FLAGS = [
    *("data_path", "model_name", "epochs", "batch_size", "learning_rate", "resume", "split", "groups", "image_size"),
    *("channels", "encoder_weights", "encoder_lr_scale", "freeze_encoder", "attention", "decoder", "optimizer", "ema"),
    *("scheduler", "seed", "patience", "accumulate", "device", "amp", "num_workers", "cache", "save_dir", "log_dir"),
]
FOLDERS = {"save_dir": "saved_models/pretrained", "log_dir": "logs/pretrained"}  # apart from those of train.py
DEFAULTS = {**RECIPES[DENOISING]["all"], **FOLDERS}


def build_parser() -> cli.Parser:
    """Flags of pretrain.py."""
    return cli.Parser("pretrain.py", __doc__, TrainConfig, only=FLAGS, defaults=DEFAULTS)


def main(argv=None) -> None:
    """Reads the flags and trains."""
    flags = {**FOLDERS, **build_parser().parse_overrides(argv), "classes": DENOISING}
    cli.import_torch()
    from training.setup import start

    start(flags)


if __name__ == "__main__":
    cli.run(main, LESS_MEMORY)
