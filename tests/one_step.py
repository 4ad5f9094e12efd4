"""One step of training on one process or several, for test_distributed.py: prints figures and weights as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch  # noqa: E402  the path must be set first
from test_precision import Plain, make_batch, make_run  # noqa: E402

from distributed import join  # noqa: E402
from engine import training_step  # noqa: E402


def main(team, pieces: int) -> None:
    torch.manual_seed(team.rank)  # the first one's weights count
    run = make_run(Plain(), team, accumulate=pieces)
    (keys,) = run.order
    batch, chosen = make_batch(), [index for _, index in keys]
    batch = {name: [values[i] for i in chosen] for name, values in batch.items()}
    batch = {name: values if name == "path" else torch.stack(values) for name, values in batch.items()}
    figures = team.total(training_step(run, batch))
    everything = team.collect(team.share(list(range(5))))
    words = team.tell(f"process {team.rank}")
    weights = [value.flatten().tolist() for value in run.state.model.parameters()]
    print(json.dumps([figures.tolist(), weights, everything, words, team.largest(team.rank, -team.rank)]))


if __name__ == "__main__":
    with join(torch.device("cpu")) as team:
        for pieces in map(int, sys.argv[1:]):
            main(team, pieces)
