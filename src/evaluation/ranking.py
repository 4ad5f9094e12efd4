"""Images in order of what people should look at: masks that look wrong, and images whose mask would teach most.

The score of a mask is the softmin of its pixels' self-confidence (Lad, Mueller, 2023:
https://arxiv.org/abs/2307.05080).
"""

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.copies import find_near_copies
from data.dataset import ImageDataset
from data.layout import Sample
from evaluation.config import EvalConfig
from evaluation.predict import Predictor, label_map_at_size, resize_logits
from evaluation.score import predictions_to_score
from models.task import BACKGROUND, BORDER
from runtime.files import write_rows
from visual.panels import draw_outline, draw_panel, write_png

DRAWN = 48  # of the most suspect masks panels are drawn
TEMPERATURE = 0.2  # of the softmin: lower looks at fewer pixels; the paper has 0.1, which finds fewer spoiled pet masks


class Suspect(NamedTuple):
    """An image of a part, and how wrong its mask looks to what predicts it.

    Args:
        score: from 0, wrong, to 1.
        share: of the pixels where the network finds the other class likelier.
    """

    sample: Sample
    score: float
    share: float
    predictor: Predictor
    part: ImageDataset


def self_confidence(decision: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probability of each pixel's own label, float32 of the labels' shape; decision logits are of pet or border."""
    probability = decision.float().sigmoid()
    return torch.where(labels != BACKGROUND, probability, 1 - probability)


def softmin(confidence: torch.Tensor, temperature: float = TEMPERATURE) -> float:
    """The mean of self-confidences (n,), weighted by softmax(-confidence / temperature); 1 of none."""
    if not len(confidence):
        return 1.0
    return float((confidence * torch.softmax(-confidence / temperature, dim=0)).sum())


def uncertainty(decision: torch.Tensor) -> float:
    """The mean entropy, from 0 to 1, of pet against background near the outline, or everywhere without one.

    Args:
        decision: decision logits (D, H, W). Near is within a 32nd of the longer side.
    """
    logits, reach = decision[:1].float(), max(1, max(decision.shape[1:]) // 32)
    sides = torch.cat([logits > 0, logits <= 0]).float()
    near = F.max_pool2d(sides, 2 * reach + 1, stride=1, padding=reach).amin(0) > 0
    nats = F.binary_cross_entropy_with_logits(logits[0], logits[0].sigmoid(), reduction="none")
    return float(nats[near if near.any() else ...].mean()) / math.log(2)


def write_uncertain(file: Path, samples: list[Sample], scores: list[float]) -> int:
    """Writes rank, name and uncertainty of images without masks, the most uncertain first; returns how many.

    Near copies of images with masks, and of others that are more uncertain, teach little and are left out.
    """
    ranked = sorted(zip(scores, samples), key=lambda pair: (-pair[0], pair[1].name))
    order = [sample for _, sample in ranked if sample.mask_path is None]
    place = {sample: number for number, sample in enumerate(order)}  # those with masks are not in it
    labelled = [sample for sample in samples if sample.mask_path is not None]
    copies = {max(pair, key=lambda sample: place[sample]) for pair in find_near_copies(order)}
    copies |= {sample for sample, _ in find_near_copies(order, labelled)}
    kept = [(score, sample) for score, sample in ranked if sample in place and sample not in copies]
    rows = [
        {"rank": rank, "name": sample.name, "picture": str(sample.image_path), "uncertainty": round(score, 6)}
        for rank, (score, sample) in enumerate(kept, start=1)
    ]
    write_rows(file, rows, ["rank", "name", "picture", "uncertainty"])
    return len(rows)


@torch.inference_mode()
def find_suspects(predictor: Predictor, part: ImageDataset, config: EvalConfig) -> list[Suspect]:
    """Scores all masks of a part. The border of trimaps is left out: it is unsure."""
    suspects = []
    for predicted in predictions_to_score(predictor, part, config, "looking for label errors"):
        confidence, sure = self_confidence(predicted.final[:, :1], predicted.labels), predicted.labels != BORDER
        share = ((confidence < 0.5) & sure).sum().item() / sure.numel()
        suspects.append(Suspect(predicted.sample, softmin(confidence[sure]), share, predictor, part))
    return suspects


def write_suspects(suspects: list[Suspect], config: EvalConfig, folder: Path) -> Path:
    """Writes label_errors.csv, of all images and the most suspect first, and panels of the first DRAWN.

    In a panel the doubtful region is outlined on the image.
    """
    suspects = sorted(suspects, key=lambda suspect: suspect.score)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"rank": rank, "name": s.sample.name, "score": round(s.score, 6), "doubtful_share": round(s.share, 6)}
        for rank, s in enumerate(suspects, start=1)
    ]
    write_rows(folder / "label_errors.csv", rows)
    first = [(s.predictor, s.part, s.sample, f"{s.sample.name}   {s.score:.4f}") for s in suspects[:DRAWN]]
    draw_ranked(first, config, 0.0, folder, doubtful=True)
    return folder / "label_errors.csv"


@torch.inference_mode()
def draw_ranked(
    ranked: Iterable[tuple[Predictor, ImageDataset, Sample, str]],
    config: EvalConfig,
    threshold: float,
    folder: Path,
    doubtful: bool = False,
) -> None:
    """Draws panels `<rank>_<name>.png`, in place of those of an earlier run.

    Args:
        ranked: images in order: what predicts each, the part that it is from, and the panel's title.
        config: how images are seen.
        threshold: decision logits above it are foreground.
        folder: where the panels go.
        doubtful: outline the pixels where the network finds the other class likelier.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("[0-9][0-9][0-9]_*.png"):
        earlier.unlink()
    for rank, (predictor, part, sample, title) in enumerate(ranked, start=1):
        alone = copy.copy(part)
        alone.samples = [sample]
        (predicted,) = predictions_to_score(predictor, alone, config, "drawing")
        image, labels = part.view.read_at(sample)
        decision = predicted.final[0].cpu()
        if doubtful:
            confidence = self_confidence(resize_logits(decision[:1], *labels.shape)[0], torch.tensor(labels))
            image = draw_outline(image, (confidence.numpy() < 0.5) & (labels != BORDER))
        label_map = label_map_at_size(predictor.task, decision, threshold, *labels.shape)
        file = folder / f"{rank:03d}_{sample.name.replace('/', '_')}.png"
        write_png(draw_panel(image, label_map, labels, title, predictor.task), file)
