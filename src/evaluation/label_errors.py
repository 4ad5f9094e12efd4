"""Finds masks that look wrong: images ranked by how little a network believes in their labels.

The score of an image is the softmin of its pixels' self-confidence (Lad, Mueller, 2023:
https://arxiv.org/abs/2307.05080).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.dataset import ImageDataset
from data.layout import Sample
from data.view import View
from evaluation.config import EvalConfig
from evaluation.predict import Predictor
from evaluation.score import predictions_to_score
from models.task import BACKGROUND, BORDER
from runtime.files import write_rows
from visual.panels import draw_outline, draw_panel, write_png

DRAWN = 48  # of the most suspect images panels are drawn
TEMPERATURE = 0.2  # of the softmin: lower looks at fewer pixels; the paper has 0.1, which finds fewer spoiled pet masks


class Suspect(NamedTuple):
    """An image and how wrong its mask looks.

    Args:
        sample: the image.
        score: from 0, wrong, to 1.
        share: of the pixels where the network finds the other class likelier.
        doubtful: these pixels, bool (H, W); of the most suspect images alone.
        predicted: likewise, the label map of the network.
    """

    sample: Sample
    score: float
    share: float
    doubtful: np.ndarray | None = None
    predicted: np.ndarray | None = None


def self_confidence(decision: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probability of each pixel's own label, float32 of the labels' shape; decision logits are of pet or border."""
    probability = decision.float().sigmoid()
    return torch.where(labels != BACKGROUND, probability, 1 - probability)


def softmin(confidence: torch.Tensor, temperature: float = TEMPERATURE) -> float:
    """The mean of self-confidences (n,), weighted by softmax(-confidence / temperature); 1 of none."""
    if not len(confidence):
        return 1.0
    return float((confidence * torch.softmax(-confidence / temperature, dim=0)).sum())


@torch.inference_mode()
def find_suspects(predictor: Predictor, dataset: ImageDataset, config: EvalConfig) -> list[Suspect]:
    """Scores all images of a part. The border of trimaps is left out: it is unsure."""
    suspects = []
    for predicted in predictions_to_score(predictor, dataset, config, "looking for label errors"):
        labels, decision = predicted.labels[0, 0], predicted.final
        confidence, sure = self_confidence(decision[0, 0], labels), labels != BORDER
        label_map = predictor.task.label_map(decision)[0, 0].cpu().numpy()
        doubtful = ((confidence < 0.5) & sure).cpu().numpy()
        score, share = softmin(confidence[sure]), float(doubtful.mean())
        suspects.append(Suspect(predicted.sample, score, share, doubtful, label_map))
        if len(suspects) >= 2 * DRAWN:
            suspects = most_suspect(suspects)
    return suspects


def most_suspect(suspects: list[Suspect]) -> list[Suspect]:
    """In order of their scores; only the first DRAWN keep their arrays, of which all would fill the memory."""
    suspects = sorted(suspects, key=lambda suspect: suspect.score)
    return [*suspects[:DRAWN], *(suspect._replace(doubtful=None, predicted=None) for suspect in suspects[DRAWN:])]


def write_suspects(suspects: list[Suspect], view: View, folder: Path) -> Path:
    """Writes label_errors.csv, of all images and the most suspect first, and panels of the first DRAWN.

    In a panel the doubtful region is outlined on the image.
    """
    suspects = most_suspect(suspects)
    rows = [
        {"rank": rank, "name": s.sample.name, "score": round(s.score, 6), "doubtful_share": round(s.share, 6)}
        for rank, s in enumerate(suspects, start=1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("[0-9][0-9][0-9]_*.png"):
        earlier.unlink()
    write_rows(folder / "label_errors.csv", rows)
    for rank, suspect in enumerate(suspects[:DRAWN], start=1):
        image, labels = view.read_at(suspect.sample, suspect.predicted.shape[::-1])
        outlined = draw_outline(image, suspect.doubtful)
        panel = draw_panel(outlined, suspect.predicted, labels, f"{suspect.sample.name}   {suspect.score:.4f}")
        write_png(panel, folder / f"{rank:03d}_{suspect.sample.name}.png")
    return folder / "label_errors.csv"
