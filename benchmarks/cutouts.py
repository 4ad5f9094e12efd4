"""How well cutouts follow fur: the test photographs of the dataset that have their own size, both engines in one run.

    python benchmarks/cutouts.py --data_path dataset

leak: mean alpha on background within 24 pixels of the animal. keep: mean alpha on the pet. border_error: mean distance
to PyMatting's closed form from the true trimap, on its border. boundary_f: of the mask, 2 pixels of tolerance. Then
seconds of one core and memory above the process, on a photograph of 12 megapixels, each engine in a process of its own.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import measure
from data.layout import Sample, read_list
from data.pixels import to_tensor
from data.view import View
from evaluation.matting import cut_out, matting_trimap
from evaluation.metrics import boundary_f
from evaluation.predict import Predictor, label_map_at_size
from models.checkpoint import open_checkpoint
from models.task import BACKGROUND, BORDER, PET
from runtime.device import choose_precision, get_device

COPIES = ((512, 512), (256, 256))  # sizes of squashed copies, which are left out
NEAR = 24  # pixels
ENGINES = ("guided", "pymatting")


def reference(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """PyMatting's closed form at the image's own size, (H, W)."""
    from pymatting import estimate_alpha_cf

    return estimate_alpha_cf(image / 255, np.select([trimap == PET, trimap == BACKGROUND], [1.0, 0.0], 0.5))


def alpha_scores(alpha: np.ndarray, trimap: np.ndarray, best: np.ndarray) -> dict[str, float]:
    """Scores of an alpha of 0 to 1; all arrays are (H, W)."""
    animal = torch.from_numpy(trimap != BACKGROUND)[None, None].float()
    near = F.max_pool2d(animal, 2 * NEAR + 1, stride=1, padding=NEAR)[0, 0].numpy() > 0
    return {
        "leak": alpha[near & (trimap == BACKGROUND)].mean(),
        "keep": alpha[trimap == PET].mean(),
        "border_error": np.abs(alpha - best)[trimap == BORDER].mean(),
    }


@torch.inference_mode()
def score(sample: Sample, predictor: Predictor, view: View) -> dict[str, dict[str, float]] | None:
    """Scores of an image by engine; None of one whose trimap lacks a value."""
    image, trimap = view.read_at(sample)
    if not all((trimap == value).any() for value in (PET, BACKGROUND, BORDER)):
        return None
    seen = to_tensor(view.read_at(sample, view.size_of(sample))[0])
    labels = label_map_at_size(predictor.task, predictor.predict(seen[None])[0].cpu(), 0.0, *trimap.shape)
    masks = (torch.from_numpy(array != BACKGROUND)[None, None] for array in (labels, trimap))
    outline, best = boundary_f(*masks, 2).item(), reference(image, trimap)
    made = matting_trimap(labels, predictor.task)
    alphas = {"mask alone": (labels != BACKGROUND) * 1.0}
    alphas |= {engine: cut_out(image, made, engine)[..., 3] / 255 for engine in ENGINES}
    alphas["guided, true trimap"] = cut_out(image, trimap)[..., 3] / 255
    return {name: {**alpha_scores(alpha, trimap, best), "boundary_f": outline} for name, alpha in alphas.items()}


def cost(engine: str) -> dict[str, float]:
    """Seconds of one core, warm, and gigabytes above this process for 12 megapixels with a ring as border."""
    torch.set_num_threads(1)
    photograph = Image.open(measure.ROOT / "docs/chelsea.png").convert("RGB").resize((4000, 3000))
    drawn = Image.new("L", photograph.size, BACKGROUND)  # which takes less memory than arrays would
    for radius, value in ((0.75, BORDER), (0.65, PET)):
        sides = [(center * (1 - radius), center * (1 + radius)) for center in (2000, 1500)]
        ImageDraw.Draw(drawn).ellipse(list(zip(*sides)), fill=value)
    image, trimap, small = np.asarray(photograph), np.asarray(drawn), slice(None, None, 20)
    cut_out(image[small, small], trimap[small, small], engine)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    cut_out(image, trimap, engine)
    seconds = time.process_time() - start
    kilo = 1 if sys.platform == "darwin" else 1024
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * kilo / 1e9
    return {"cpu_seconds_12_mp": round(seconds, 2), "gigabytes_12_mp": round(more, 2)}


def main() -> None:
    """Prints a table and writes it into benchmarks/results/cutouts.csv."""
    parser = measure.parser(__doc__, rounds=1)
    parser.add_argument("--model_path", default=str(measure.ROOT / "saved_models/pets.pth"))
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--every", type=int, default=1, help="take every Nth image alone")
    parser.add_argument("--cost", choices=ENGINES, help="measure time and memory in this process")
    args = parser.parse_args()
    if args.cost:
        print(json.dumps(cost(args.cost)))
        return
    device = get_device(args.device)
    model, checkpoint, _ = open_checkpoint(args.model_path, None, "")
    precision, view = choose_precision("auto", device, 256), View.of(checkpoint)
    predictor = Predictor(precision.to_device(model), precision)
    samples = [s for s in read_list(Path(args.data_path), "test") if s.image_path.is_file()]
    own = [s for s in samples if s.displayed_size() not in COPIES][:: args.every]
    scores = [found for found in (score(s, predictor, view) for s in own) if found]
    rows = []
    for name in scores[0]:
        means = {key: round(float(np.mean([one[name][key] for one in scores])), 4) for key in scores[0][name]}
        spent = {"cpu_seconds_12_mp": "", "gigabytes_12_mp": ""}
        if name in ENGINES:
            command = [sys.executable, __file__, "--cost", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            spent = json.loads(done.stdout.splitlines()[-1])
        rows.append({"engine": name, **means, "n": len(scores), **spent})
    measure.report("cutouts", rows, device, checkpoint=Path(args.model_path).name, image_size=view.size)


if __name__ == "__main__":
    main()
