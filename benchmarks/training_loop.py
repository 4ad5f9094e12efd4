"""The cost of being able to stop and resume a run: the loop of train.py against the same steps in a bare loop.

    python benchmarks/training_loop.py --data_path dataset

Both train the same network on the same batches, in turn, several rounds in one run. Ours counts, checks signals and the
clock at every step, and saves as after an epoch (synced, renamed). The bare one does nothing between its steps and
saves with plain torch.save.
"""

import tempfile
from pathlib import Path

import torch

import measure
from runtime.device import get_device
from train import build_parser
from training.loop import Trainer
from training.losses import LOSSES
from training.setup import prepare


def bare_epoch(trainer: Trainer, file: Path) -> None:
    """The steps of an epoch and a save, and nothing else."""
    net, precision, loss_fn = trainer.state.net, trainer.state.net.precision, LOSSES[trainer.state.config.loss]
    net.model.train()
    trainer.loader.sampler.start = 0
    for (batch,) in trainer.loader:
        with precision.autocast():
            logits = net.model(precision.prepare_images(batch["image"]))
        loss = loss_fn(logits, batch["labels"].to(precision.device), net.model.task)
        net.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.model.parameters(), max_norm=1.0)
        net.optimizer.step()
    torch.save({"weights": net.model.state_dict(), "optimizer": net.optimizer.state_dict()}, file)


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
    overrides = {"image_size": 128, "encoder_weights": "none", "split": "official", **parser.parse_overrides()}
    rounds = overrides.pop("rounds")
    with tempfile.TemporaryDirectory() as scratch:
        device = get_device(overrides.get("device", "auto"))
        trainer, _, _ = prepare({**overrides, "save_dir": scratch, "log_dir": scratch}, device)
        config = trainer.state.config
        bare = Path(scratch) / "bare.pth"
        variants = {"bare": lambda: bare_epoch(trainer, bare), "train.py": lambda: our_epoch(trainer)}
        seconds = measure.take_turns(variants, rounds, device)
    setting = {"model": config.model_name, "image_size": config.image_size, "batch_size": config.batch_size}
    batches = trainer.state.terms[0].batches
    rows = measure.rates(seconds, len(batches.dataset), "images", steps=batches.steps)
    measure.report("training_loop", rows, device, **setting)


if __name__ == "__main__":
    main()
