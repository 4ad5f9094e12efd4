"""The cost of being able to stop and resume a run: the loop of train.py against the same steps in a bare loop.

    python benchmarks/training_loop.py --data_path dataset

Both train the same network on the same batches, in turn, several rounds in one run. Ours counts, checks signals and the
clock at every step, and saves as after an epoch (synced, renamed). The bare one does nothing between its steps and
saves with plain torch.save.
"""

import tempfile
from pathlib import Path

import torch
from training.run import prepare
from training.trainer import Trainer

import measure
from runtime.device import get_device
from train import build_parser
from training.config import TrainConfig
from training.losses import LOSSES


def bare_epoch(trainer: Trainer, file: Path) -> None:
    """The steps of an epoch and a save, and nothing else."""
    state, precision = trainer.state, trainer.precision
    state.model.train()
    trainer.sampler.start = 0
    for batch in trainer.train_loader:
        with precision.autocast():
            logits = state.model(precision.prepare_images(batch["image"]))
        loss = LOSSES[state.config.loss](logits, batch["mask"].to(precision.device), state.model.task)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_norm=1.0)
        state.optimizer.step()
    torch.save({"weights": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}, file)


def our_epoch(trainer: Trainer) -> None:
    """The same in train.py, without validation."""
    trainer.train_one_epoch()
    progress = trainer.state.progress
    progress.step, progress.sums, progress.seconds = 0, None, 0.0
    trainer.state.save("best")


def main() -> None:
    """Prints both medians and their ratio, and writes them into benchmarks/results/training_loop.csv."""
    parser = build_parser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(image_size=128, encoder_weights="none", split="official")
    overrides = parser.parse_overrides()
    rounds = overrides.pop("rounds")
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig.from_flags({**overrides, "save_dir": scratch, "log_dir": scratch})
        device = get_device(config.device)
        trainer, _, _ = prepare(config, overrides, device)
        bare = Path(scratch) / "bare.pth"
        variants = {"bare": lambda: bare_epoch(trainer, bare), "train.py": lambda: our_epoch(trainer)}
        seconds = measure.take_turns(variants, rounds, device)
    setting = {"model": config.model_name, "image_size": config.image_size, "batch_size": config.batch_size}
    rows = measure.rates(seconds, trainer.sampler.size, "images", steps=trainer.sampler.steps)
    measure.report("training_loop", rows, device, **setting)


if __name__ == "__main__":
    main()
