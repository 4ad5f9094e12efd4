"""One step of training on one process or several, for test_distributed.py: prints figures and weights as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch  # noqa: E402  the path must be set first
import training.trainer  # noqa: E402
from training.semi_supervised import PseudoLabeled  # noqa: E402

from runtime.distributed import init_distributed  # noqa: E402
from stubs import Plain, make_batch, make_run  # noqa: E402
from training.optim import ModelEMA  # noqa: E402

UNLABELED = 5  # images: with 7 others the shares of two processes are not alike


def pseudo_labeled(context) -> tuple[PseudoLabeled, torch.Tensor]:
    """This process's share of the images without masks."""
    images = torch.rand(UNLABELED, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 255
    labels = images[:, :1] > 150
    found = PseudoLabeled(*(context.shard(values) for values in (images, labels.float(), images[:, 1:2] > 99)))
    return found, torch.tensor([0.0, 0.0, len(found.images)])


def main(context, pieces: int) -> None:
    torch.manual_seed(context.rank)  # the first one's weights count
    model = Plain()
    run = make_run(model, context, ema=ModelEMA(model, 0.9), accumulate=pieces)
    (keys,) = run.sampler
    run.sampler.unlabeled_batch = UNLABELED
    training.trainer.pseudo_label = lambda *_: pseudo_labeled(context)
    batch, chosen = make_batch(), [index for _, index in keys]
    batch = {name: [values[i] for i in chosen] for name, values in batch.items()}
    batch = {name: values if name == "path" else torch.stack(values) for name, values in batch.items()}
    metrics = context.all_reduce_sum(run.train_batch({**batch, "unlabeled": {}}))
    everything = context.all_gather(context.shard(list(range(5))))
    words = context.broadcast(f"process {context.rank}")
    weights = [value.flatten().tolist() for value in run.state.model.parameters()]
    largest = context.all_reduce_max(context.rank, -context.rank)
    print(json.dumps([metrics.tolist(), weights, everything, words, largest]))


if __name__ == "__main__":
    with init_distributed(torch.device("cpu")) as context:
        for pieces in map(int, sys.argv[1:]):
            main(context, pieces)
