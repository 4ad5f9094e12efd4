"""Finds masks that look wrong: images ranked by how little a network believes in their labels.

The score of an image is the softmin of its pixels' self-confidence (Lad, Mueller, 2023:
https://arxiv.org/abs/2307.05080).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.index import Sample
from evaluation.evaluator import CheckpointEvaluator, predict_samples
from models.task import BACKGROUND, BORDER
from runtime.files import write_rows
from visual.panels import draw_outline, draw_panel, write_png

TEMPERATURE = 0.2  # of the softmin: lower looks at fewer pixels; the paper has 0.1, which finds fewer spoiled pet masks


class Suspect(NamedTuple):
    """An image and how wrong its mask looks.

    Args:
        sample: the image.
        score: from 0, wrong, to 1.
        share: of the pixels where the network finds the other class likelier.
        doubtful: these pixels, bool (H, W); of the most suspect images alone.
        found: likewise, the label map that it finds.
    """

    sample: Sample
    score: float
    share: float
    doubtful: np.ndarray | None = None
    found: np.ndarray | None = None


def self_confidence(decision: torch.Tensor, trimap: torch.Tensor) -> torch.Tensor:
    """Probability of each pixel's own label, float32 of the trimap's shape; decision logits are of pet or border."""
    probability = decision.float().sigmoid()
    return torch.where(trimap != BACKGROUND, probability, 1 - probability)


def softmin(confidence: torch.Tensor, temperature: float = TEMPERATURE) -> float:
    """The mean of self-confidences (n,), weighted by softmax(-confidence / temperature); 1 of none."""
    if not len(confidence):
        return 1.0
    return float((confidence * torch.softmax(-confidence / temperature, dim=0)).sum())


def find_suspects(evaluator: CheckpointEvaluator, subset: str, count: int) -> list[Suspect]:
    """Scores all images of a part; see `most_suspect` for `count`. The border of trimaps is left out: it is unsure.

    Raises:
        UsageError: the network was trained on them.
    """
    dataset, task, config = evaluator.part(subset), evaluator.predictor.task, evaluator.config
    loader, suspects = evaluator.loader(dataset, alone=True), []
    bar = tqdm(total=len(dataset), desc="looking for label errors", unit="image", leave=False, disable=None, delay=1)
    with bar:
        for batch in predict_samples(evaluator.predictor, dataset, loader, config):
            for sample, prediction, trimap in batch:
                confidence = self_confidence(prediction.final[0, 0], trimap[0, 0])
                sure = trimap[0, 0] != BORDER
                found = task.label_map(prediction.final, config.logit_threshold)[0, 0].cpu().numpy()
                doubtful = ((confidence < 0.5) & sure).cpu().numpy()
                suspects.append(Suspect(sample, softmin(confidence[sure]), float(doubtful.mean()), doubtful, found))
                bar.update()
            suspects = most_suspect(suspects, count)
    return suspects


def most_suspect(suspects: list[Suspect], count: int) -> list[Suspect]:
    """In order of their scores; only the first `count` keep their arrays, of which all would fill the memory."""
    suspects = sorted(suspects, key=lambda suspect: suspect.score)
    return [*suspects[:count], *(suspect._replace(doubtful=None, found=None) for suspect in suspects[count:])]


def write_suspects(suspects: list[Suspect], count: int, folder: Path) -> Path:
    """Writes label_errors.csv, of all images and the most suspect first, and panels of the first `count`.

    In a panel the doubtful region is outlined on the image.
    """
    suspects = most_suspect(suspects, count)
    rows = [
        {"rank": rank, "name": s.sample.name, "score": round(s.score, 6), "doubtful_share": round(s.share, 6)}
        for rank, s in enumerate(suspects, start=1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("[0-9][0-9][0-9]_*.png"):
        earlier.unlink()
    write_rows(folder / "label_errors.csv", rows)
    for rank, suspect in enumerate(suspects[:count], start=1):
        image, trimap = suspect.sample.read(suspect.found.shape[::-1])
        shown = draw_outline(image, suspect.doubtful)
        panel = draw_panel(shown, suspect.found, trimap, f"{suspect.sample.name}   {suspect.score:.4f}")
        write_png(panel, folder / f"{rank:03d}_{suspect.sample.name}.png")
    return folder / "label_errors.csv"
