"""Images in order of what people should look at: masks that look wrong, and images whose mask would teach most.

The score of a mask is the softmin of its pixels' self-confidence (Lad, Mueller, 2023:
https://arxiv.org/abs/2307.05080).
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from data.copies import find_near_copies
from data.dataset import ImageDataset
from data.layout import Sample
from evaluation.config import EvalConfig
from evaluation.polygons import regions, write_labelme
from evaluation.predict import Predictor, label_map_at_size, resize_logits
from evaluation.score import predictions_to_score
from models.task import BACKGROUND, BORDER
from runtime.errors import plural
from runtime.files import write_rows
from visual.panels import draw_outline, draw_panel, write_png

DRAWN = 48  # of the most suspect masks panels are drawn
TEMPERATURE = 0.2  # of the softmin: lower looks at fewer pixels; the paper has 0.1, which finds fewer spoiled pet masks


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

    Decision logits are (D, H, W). Near is within a 32nd of the longer side.
    """
    logits, reach = decision[:1].float(), max(1, max(decision.shape[1:]) // 32)
    sides = torch.cat([logits > 0, logits <= 0]).float()
    near = F.max_pool2d(sides, 2 * reach + 1, stride=1, padding=reach).amin(0) > 0
    nats = F.binary_cross_entropy_with_logits(logits[0], logits[0].sigmoid(), reduction="none")
    return float(nats[near if near.any() else ...].mean()) / math.log(2)


def write_uncertain(file: Path, scored: list[tuple[Sample, float]]) -> None:
    """Writes rank, name and uncertainty of images without masks, the most uncertain first.

    Near copies of images with masks, and of others that are more uncertain, teach little and are left out.
    """
    labelled = [sample for sample, _ in scored if sample.mask_path is not None]
    ranked = sorted((pair for pair in scored if pair[0].mask_path is None), key=lambda pair: (-pair[1], pair[0].name))
    place = {sample: number for number, (sample, _) in enumerate(ranked)}
    copies = {max(pair, key=place.get) for pair in find_near_copies([*place])}
    copies |= {sample for sample, _ in find_near_copies([*place], labelled)}
    kept = [(sample, score) for sample, score in ranked if sample not in copies]
    rows = [
        {"rank": rank, "name": sample.name, "picture": str(sample.image_path), "uncertainty": round(score, 6)}
        for rank, (sample, score) in enumerate(kept, start=1)
    ]
    write_rows(file, rows, ["rank", "name", "picture", "uncertainty"])
    print(f"{plural(len(rows), 'image')} without a mask, the most uncertain first: {file}")


@torch.inference_mode()
def write_label_errors(parts: list[tuple[Predictor, ImageDataset]], config: EvalConfig, folder: Path) -> None:
    """Ranks the masks of parts by how wrong they look to what predicts them. The border of trimaps is left out.

    Writes label_errors.csv, of all images and the most suspect first, and of the first DRAWN panels, in which the
    doubtful region is outlined on the image, and their masks for LabelMe.
    """
    ranked = []
    for predictor, part in parts:
        for sample, decision, labels, _ in predictions_to_score(predictor, part, config, "looking for label errors"):
            confidence, sure = self_confidence(decision[:, :1], labels), labels != BORDER
            score, doubtful = softmin(confidence[sure]), ((confidence < 0.5) & sure).sum().item() / sure.numel()
            row = {"name": sample.name, "score": round(score, 6), "doubtful_share": round(doubtful, 6)}
            ranked.append((row, predictor, part.view, sample))
    ranked.sort(key=lambda entry: entry[0]["score"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "label_errors.csv"
    write_rows(file, [{"rank": rank, **row} for rank, (row, *_) in enumerate(ranked, start=1)])
    first = [(*source, f"{row['name']}   {row['score']:.4f}") for row, *source in ranked[:DRAWN]]
    draw_ranked(first, config, 0.0, folder, doubtful=True)
    print(f"Ranked {plural(len(ranked), 'image')} by likely label error, worst first: {file}")


@torch.inference_mode()
def draw_ranked(
    ranked: list[tuple], config: EvalConfig, threshold: float, folder: Path, doubtful: bool = False
) -> None:
    """Draws panels `<rank>_<name>.png` of images, given as (predictor, view, sample, title of the panel).

    With `doubtful` the pixels where the network finds the other class likelier are outlined, and the outlines of the
    masks are written as `<name>.json` for LabelMe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("[0-9][0-9][0-9]_*.png"):
        earlier.unlink()
    for rank, (predictor, view, sample, title) in enumerate(ranked, start=1):
        (predicted,) = predictions_to_score(predictor, ImageDataset([sample], view), config, "drawing")
        image, labels = view.read_at(sample)
        decision, stem = predicted.decision[0].cpu(), sample.name.replace("/", "_")
        if doubtful:
            confidence = self_confidence(resize_logits(decision[:1], *labels.shape)[0], torch.tensor(labels))
            image = draw_outline(image, (confidence.numpy() < 0.5) & (labels != BORDER))
            outlines = regions(labels != BACKGROUND, {True: "pet"})
            write_labelme(folder / f"{stem}.json", sample.image_path, labels.shape[::-1], outlines)
        label_map = label_map_at_size(predictor.task, decision, threshold, *labels.shape)
        write_png(draw_panel(image, label_map, labels, title, predictor.task), folder / f"{rank:03d}_{stem}.png")
