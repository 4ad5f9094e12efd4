"""Pre-trains a network on images without masks: it learns to find noise that is added to them.

python src/pretrain.py --data_path folder_of_images --model_name unet_small --epochs 20
python src/train.py --data_path dataset --init saved_models/pretrained/unet_small_best.pth
"""

from pathlib import Path

from models.names import DENOISING
from runtime import cli
from training.config import LESS_MEMORY, TrainConfig

# Flags of train.py that are about masks, or would change the noise.
UNUSED = (
    *("recipe", "classes", "loss", "class_weights", "init", "teacher", "train_fraction", "augment_uncertain"),
    *("augment", "num_augmentations", "augment_strength", "distort", "color_jitter", "mix", "multi_scale"),
    *("progressive", "unlabeled", "unlabeled_batch", "unlabeled_weight", "confidence", "folds", "fold", "tensorboard"),
)


def build_parser() -> cli.Parser:
    """Flags of pretrain.py."""
    return cli.Parser("pretrain.py", "Pre-train a network on images without masks.", TrainConfig, without=UNUSED)


def main(argv=None) -> None:
    """Reads the flags and trains. By default files go where those of train.py don't take their place."""
    folders = {name: str(Path(getattr(TrainConfig(), name)) / "pretrained") for name in ("save_dir", "log_dir")}
    overrides = {**folders, **build_parser().parse_overrides(argv), "recipe": DENOISING}
    cli.import_torch()
    from training.setup import start

    start(overrides)


if __name__ == "__main__":
    cli.run(main, LESS_MEMORY)
