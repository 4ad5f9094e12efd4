"""One step of training on one process or several, for test_distributed.py: prints figures and weights as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch  # noqa: E402  the path must be set first

from evaluation.predict import Predictor  # noqa: E402
from runtime.distributed import init_distributed  # noqa: E402
from stubs import Plain, make_batch, make_masks, make_net, make_run  # noqa: E402
from training.optim import ModelEMA  # noqa: E402
from training.step import MetricLogger  # noqa: E402
from training.terms import Batch  # noqa: E402
from training.terms.fixmatch import FixMatchTerm, UnlabeledBatches  # noqa: E402

UNLABELED = 5  # images: with 7 others the shares of two processes are not alike


class Labelled(FixMatchTerm):
    """Images whose labels don't depend on the process that has them."""

    def prepare(self, read, first, epoch, step) -> Batch:
        context = self.batches.context
        images = torch.rand(UNLABELED, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 255
        labels, counted, figures = images[:, :1] > 150, images[:, 1:2] > 99, images.mean(dim=(2, 3))[:, :1] / 255
        scale = context.size / self.batches.length(step)
        return Batch(*map(context.shard, (images, labels.float(), counted, figures)), scale)


def main(context, micro_batches: int) -> None:
    torch.manual_seed(context.rank)  # the first one's weights count
    model = Plain()
    net, masks = make_net(model, context, ema=ModelEMA(model, 0.9)), make_masks(model, context)
    unlabeled = UnlabeledBatches(range(UNLABELED), UNLABELED, 0, 1, context)
    extra = Labelled(unlabeled, Predictor(net.ema.model, net.precision), 0.9)
    run, metrics = make_run(model, net, [masks, extra], accumulate=micro_batches), MetricLogger([masks, extra])
    batch, chosen = make_batch(), [index for _, index in masks.batches.keys(0, 0)]
    batch = {name: [values[i] for i in chosen] for name, values in batch.items()}
    batch = {name: values if name == "path" else torch.stack(values) for name, values in batch.items()}
    run.train_batch([batch, None], metrics)
    totals = context.all_reduce(metrics.sums)
    everything = context.all_gather(context.shard(list(range(5))))
    words = context.broadcast(f"process {context.rank}")
    weights = [value.flatten().tolist() for value in model.parameters()]
    largest = context.all_reduce_max(context.rank, -context.rank)
    print(json.dumps([totals.tolist(), weights, everything, words, largest]))


if __name__ == "__main__":
    with init_distributed(torch.device("cpu")) as context:
        for micro_batches in map(int, sys.argv[1:]):
            main(context, micro_batches)
