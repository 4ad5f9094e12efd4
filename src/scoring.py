"""Runs a network over pictures with known masks: quickly for validation, picture by picture for evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

import utils
from distributed import ALONE, Team
from metrics import CLASSES, COUNTS, boundary_f
from models import SegmentationModel, decisions, pet_logits, trimaps_of
from pictures import BACKGROUND, BORDER, PET, read_mask, read_trimap
from precision import Precision, to_device


def measure(
    model: SegmentationModel,
    loader: DataLoader,
    precision: Precision,
    loss_fn: Callable | None = None,
    after_batch: Callable[[], None] = lambda: None,
    title: str = "evaluating",
    team: Team = ALONE,
) -> tuple[torch.Tensor, float]:
    """Runs the model over a loader and counts pixels.

    Args:
        model: placed by `precision`; it is put into evaluation mode and left there.
        loader: batches of SimpleOxfordPetDataset's samples, every image once; of `share_batches` where a team works.
        precision: where and how to compute.
        loss_fn: see losses.py, averaged over the batch; None computes none.
        after_batch: called after every batch; may raise to stop.
        title: of the progress bar.
        team: the processes that share the batches; all of them get the whole result.

    Returns:
        `pixel_counts` of every image, int64 (n, 4) on the CPU in the loader's order, and the mean loss over images
        (NaN without `loss_fn`).
    """
    model.eval()
    done, device = [], precision.device
    bar = tqdm(loader, desc=title, unit="batch", leave=False, disable=None, delay=1)
    with torch.inference_mode():
        for batch in bar:
            masks, trimaps = (to_device(batch[name], device) for name in ("mask", "trimap"))
            with precision.autocast():
                logits = model(precision.move(batch["image"]))
            target = masks if logits.shape[1] == 1 else trimaps
            loss = logits.new_tensor(math.nan) if loss_fn is None else loss_fn(logits, target)
            done.append((utils.pixel_counts(pet_logits(logits) > 0, masks), loss * len(masks)))
            after_batch()
    done = team.collect([(counts.cpu(), loss.item()) for counts, loss in done])
    counts = torch.cat([counts for counts, _ in done])
    return counts, sum(loss for _, loss in done) / len(counts)


def logits_at_size(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits (1, S, S) on the CPU to float (height, width). Resized before they become a mask, outlines stay smooth."""
    return F.interpolate(logits[None].float(), (height, width), mode="bilinear", align_corners=False)[0, 0]


def decide_at_size(decided: torch.Tensor, cut: float, height: int, width: int) -> np.ndarray:
    """What `predict` gave for a picture, (C, S, S) on the CPU, as a trimap at this size: uint8 (height, width).

    Of two classes there is no border in it.
    """
    found = np.where(logits_at_size(decided[:1], height, width).numpy() > cut, np.uint8(PET), np.uint8(BACKGROUND))
    if len(decided) == 2:
        found[(found == PET) & (logits_at_size(decided[1:], height, width).numpy() > 0)] = BORDER
    return found


@dataclass(frozen=True)
class Scoring:
    """How pictures are scored.

    Args:
        cut: logits above it are pet; 0 is probability 0.5.
        original_size: against the trimaps at their own sizes, instead of the network's.
        ignore_border: pixels of the trimaps' border don't count.
        tolerance: of outlines, in pixels of the size that is scored.
        tta: average predictions over flips and scales.
    """

    cut: float = 0.0
    original_size: bool = False
    ignore_border: bool = False
    tolerance: int = 2
    tta: bool = False


def predict(model: SegmentationModel, images: torch.Tensor, precision: Precision, tta: bool) -> list[torch.Tensor]:
    """What `decisions` makes, float, of logits for images (N, 3, S, S): plain ones, and with `tta` those of an average.

    The average is of probabilities over three scales, each straight and flipped: six times the work.
    """

    def straight(pixels: torch.Tensor) -> torch.Tensor:
        with precision.autocast():
            return model(precision.move(pixels)).float()

    views = [straight(images)]
    decided = [decisions(views[0])]
    if tta:
        size = images.shape[-1]
        views += [straight(images.flip(-1)).flip(-1)]
        for step in (-1, 1):  # a quarter smaller and larger, but a whole stride at least
            side = size + step * model.stride * max(1, round(size / 4 / model.stride))
            if side > 0:
                pixels = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
                other = [straight(pixels), straight(pixels.flip(-1)).flip(-1)]
                views += [F.interpolate(view, (size, size), mode="bilinear") for view in other]
        if views[0].shape[1] == 1:
            mean = torch.stack(views).sigmoid().mean(0).logit(eps=1e-7)
        else:
            mean = torch.stack(views).softmax(dim=2).mean(0).clamp(min=1e-7).log()
        decided.append(decisions(mean))
    return decided


def each_picture(model, dataset, loader: DataLoader, precision: Precision, scoring: Scoring):
    """Runs a network over a dataset.

    Yields:
        For each batch a list: of each picture its Pet, what `predict` gave for it, each (1, C, H, W), and its trimap
        (1, 1, H, W), all on the device and of the size to score at.
    """
    pets = {str(pet.image_path): pet for pet in dataset.pets}
    with torch.inference_mode():
        for batch in loader:
            logits, found = predict(model, batch["image"], precision, scoring.tta), []
            for i, path in enumerate(batch["path"]):
                pet = pets[path]
                views, trimap = [one[i : i + 1] for one in logits], batch["trimap"][i : i + 1]
                if scoring.original_size:
                    trimap = torch.from_numpy((read_mask if pet.own else read_trimap)(pet.mask_path).copy())[None, None]
                    views = [F.interpolate(view, trimap.shape[-2:], mode="bilinear") for view in views]
                found.append((pet, views, trimap.to(precision.device)))
            yield found


def score_pictures(
    model, dataset, loader: DataLoader, precision: Precision, scoring: Scoring, team: Team = ALONE
) -> list[dict]:
    """Scores a dataset picture by picture.

    Args:
        model: placed by `precision`, in evaluation mode.
        dataset: a SimpleOxfordPetDataset.
        loader: batches of it, from `share_batches`.
        precision: where and how to compute.
        scoring: how to score.
        team: the processes that share the batches; all of them get all rows.

    Returns:
        For each picture a row: name, breed, size scored at, counts, Dice, boundary F; with TTA also `plain_dice`.
    """
    batches = each_picture(model, dataset, loader, precision, scoring)
    bar = tqdm(batches, total=len(loader), desc="evaluating", unit="batch", leave=False, disable=None, delay=1)
    done = [
        [{"name": pet.name, **score_picture(views, trimap, scoring, not pet.own)} for pet, views, trimap in found]
        for found in bar
    ]
    return [row for rows in team.collect(done) for row in rows]


def score_picture(views: list[torch.Tensor], trimap: torch.Tensor, scoring: Scoring, border: bool = True) -> dict:
    """Scores the last of what `predict` gave for a picture, each (1, C, H, W), against its trimap (1, 1, H, W).

    Of three classes each is scored too, where the trimap has a `border` and it counts.
    """
    mask, counted = trimap != BACKGROUND, trimap != BORDER if scoring.ignore_border else None
    plain, prediction = (view[:, :1] > scoring.cut for view in (views[0], views[-1]))
    (counts,) = utils.pixel_counts(prediction, mask, counted)
    row = dict(zip(COUNTS, counts.tolist()))
    row["dice"] = utils.dice_from_counts(counts).item()
    # Where the border does not count, no outline is known.
    row["boundary_f"] = math.nan if scoring.ignore_border else boundary_f(prediction, mask, scoring.tolerance).item()
    if scoring.tta:
        row["plain_dice"] = utils.dice_from_counts(utils.pixel_counts(plain, mask, counted)).item()
    if views[-1].shape[1] == 2 and border and not scoring.ignore_border:
        found = trimaps_of(views[-1], scoring.cut)
        for value, name in CLASSES.items():
            counts = utils.pixel_counts(found == value, trimap == value)
            row[name] = utils.dice_from_counts(counts).item()
    return {"width": trimap.shape[-1], "height": trimap.shape[-2], **row}


def find_threshold(
    model, dataset, loader: DataLoader, precision: Precision, scoring: Scoring, team: Team = ALONE
) -> tuple[float, float]:
    """The threshold of probability, in hundredths, with the best mean Dice when pictures are scored so; and that Dice.

    Args as for `score_pictures`.
    """
    done = []
    batches = each_picture(model, dataset, loader, precision, scoring)
    for found in tqdm(batches, total=len(loader), desc="threshold", unit="batch", leave=False, disable=None, delay=1):
        rows = []
        for _, views, trimap in found:
            # A pixel of level k is pet at thresholds up to k hundredths, being above them.
            levels = (views[-1][:, :1].sigmoid() * 100).ceil().long().clamp(1, 100) - 1
            codes = levels + 100 * (trimap != BACKGROUND)
            counted = codes[trimap != BORDER] if scoring.ignore_border else codes.flatten()
            # Pixels by truth and level; summed from above they are what each threshold predicts.
            rows.append(torch.bincount(counted, minlength=200).view(2, 100).flip(1).cumsum(1).flip(1).cpu())
        done.append(torch.stack(rows))
    counts = torch.cat(team.collect(done)).double()
    fp, tp = counts.unbind(1)
    total = fp + tp + tp[:, :1]  # predicted and true
    dice = torch.where(total > 0, 2 * tp / total.clamp(min=1), 1.0).mean(0)
    best = min(range(5, 96), key=lambda level: (-dice[level].item(), abs(level - 50)))
    return best / 100, dice[best].item()
