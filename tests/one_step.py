"""One step of training on one process or several, for test_distributed.py: prints figures and weights as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch  # noqa: E402  the path must be set first

from runtime.distributed import init_distributed  # noqa: E402
from stubs import Plain, make_batch, make_run  # noqa: E402


def main(context, pieces: int) -> None:
    torch.manual_seed(context.rank)  # the first one's weights count
    run = make_run(Plain(), context, accumulate=pieces)
    (keys,) = run.sampler
    batch, chosen = make_batch(), [index for _, index in keys]
    batch = {name: [values[i] for i in chosen] for name, values in batch.items()}
    batch = {name: values if name == "path" else torch.stack(values) for name, values in batch.items()}
    metrics = context.all_reduce_sum(run.train_batch(batch))
    everything = context.all_gather(context.shard(list(range(5))))
    words = context.broadcast(f"process {context.rank}")
    weights = [value.flatten().tolist() for value in run.state.model.parameters()]
    largest = context.all_reduce_max(context.rank, -context.rank)
    print(json.dumps([metrics.tolist(), weights, everything, words, largest]))


if __name__ == "__main__":
    with init_distributed(torch.device("cpu")) as context:
        for pieces in map(int, sys.argv[1:]):
            main(context, pieces)
