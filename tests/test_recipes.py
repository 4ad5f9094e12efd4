"""What recipes are made of: weight averages, AdamW, attention, strengths of augmentation, sizes that vary, recipes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.ops import SqueezeExcitation as TorchvisionSqueezeExcitation

from data.augment import STRENGTHS, BatchAugmentation, augment_batch, draw_augmentation, mix, possible_sizes
from data.index import stratified_subset
from helpers import TINY, assert_one_error, run_ok, run_script
from models import ATTENTION, MODELS, build_model
from models.attention import ConvBlockAttention, SqueezeExcitation
from models.checkpoint import load_checkpoint
from models.task import TASKS
from runtime.options import is_valid
from test_precision import Plain, make_batch, make_run
from train import augmented, build_parser, open_data
from training.config import RECIPES, TrainConfig
from training.optim import ModelEMA, build_optimizer, build_scheduler

# ------------------------------------------------------------------------------------------------------ weight averages


def test_an_average_by_hand():
    model = torch.nn.BatchNorm1d(1)
    average = ModelEMA(model, 0.5)
    expected, statistics = 1.0, 0.0  # as batch norm begins
    for step, (weight, mean) in enumerate([(3.0, 8.0), (5.0, 2.0), (0.0, 4.0), (7.0, 1.0)] * 4, start=1):
        with torch.no_grad():
            model.weight.fill_(weight)
            model.running_mean.fill_(mean)
            model.num_batches_tracked.fill_(step)
        average.update(model)
        decay = min(0.5, step / (step + 9))
        expected, statistics = decay * expected + (1 - decay) * weight, decay * statistics + (1 - decay) * mean
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.model.running_mean.item() == pytest.approx(statistics, rel=1e-5)
        assert average.model.num_batches_tracked.item() == step
    assert not average.model.training
    assert not average.model.weight.requires_grad
    assert model.weight.item() == 7.0


def test_a_step_updates_the_average_and_trains_the_weights():
    model = Plain()
    run = make_run(model, ema=ModelEMA(model, 0.9))
    before = run.state.model.layers[0].weight.clone()
    run.train_batch(make_batch())
    after, averaged = run.state.model.layers[0].weight, run.state.ema.model.layers[0].weight
    torch.testing.assert_close(averaged, 0.1 * before + 0.9 * after, rtol=1e-4, atol=1e-6)
    assert not torch.equal(before, after)


# ------------------------------------------------------------------------------------------------------------ optimizer


def test_adamw_shrinks_weights_and_leaves_norms_and_biases_alone():
    config = TrainConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    torch.nn.init.ones_(model[0].bias)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(config, model).step()
    ratios = [(now / then).item() for now, then in zip(model.parameters(), before) if then.item()]
    assert ratios == pytest.approx([1 - 0.1 * 0.5, 1.0, 1.0])  # the convolution's weight and bias, the norm's weight


# ------------------------------------------------------------------------------------------------------------ attention


def test_squeeze_and_excitation_is_torchvisions():
    ours, theirs = SqueezeExcitation(64), TorchvisionSqueezeExcitation(64, 4)
    for mine, other in ((ours.gate[0], theirs.fc1), (ours.gate[2], theirs.fc2)):
        other.load_state_dict(mine.state_dict())
    x = torch.randn(2, 64, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam_by_hand():
    block, x = ConvBlockAttention(8), torch.randn(1, 8, 3, 4)
    with torch.no_grad():
        (narrow, _, wide), places = block.channels, block.places

        def gate(vector):
            hidden = (narrow.weight[:, :, 0, 0] @ vector + narrow.bias).clamp(min=0)
            return wide.weight[:, :, 0, 0] @ hidden + wide.bias

        scale = torch.sigmoid(gate(x[0].mean(dim=(1, 2))) + gate(x[0].amax(dim=(1, 2))))
        weighed = x[0] * scale[:, None, None]
        maps = torch.nn.functional.pad(torch.stack([weighed.mean(0), weighed.amax(0)]), (3, 3, 3, 3))
        where = torch.empty(3, 4)
        for row in range(3):
            for column in range(4):
                seen = maps[:, row : row + 7, column : column + 7]
                where[row, column] = torch.sigmoid((places.weight[0] * seen).sum() + places.bias[0])
        torch.testing.assert_close(block(x)[0], weighed * where, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_networks_attend_and_their_configuration_says_so(name, attention):
    model = build_model(name, attention=attention)
    again = build_model(name, **model.config)
    again.load_state_dict(model.state_dict())
    plain = build_model(name)
    kinds = {type(up.attention) for up in model.ups}
    assert kinds == {ATTENTION[attention]}
    assert set(plain.state_dict()) < set(model.state_dict())
    with torch.inference_mode():
        images = torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8)
        assert model.eval()(images).shape == (1, 1, 40, 33)


def test_an_unknown_attention_is_named():
    with pytest.raises(ValueError, match="no attention is called 'more'; there are none, se, cbam"):
        build_model("unet", attention="more")


# ----------------------------------------------------------------------------------------------------- learning rate


def test_plateau_halves_the_rate_after_three_epochs_without_a_better_dice():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8e-6)
    scheduler = build_scheduler("plateau", optimizer, 40)
    rates = []
    for dice in [0.5, 0.6, 0.4, 0.5, 0.6, 0.7, *[0.7] * 20]:  # three that are no better are borne, four are not
        scheduler.step(dice)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([8e-6] * 9 + [4e-6] * 4 + [2e-6] * 4 + [1e-6] * 9)


def test_cosine_warms_up_over_a_tenth_of_the_steps_and_ends_at_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_scheduler("cosine", optimizer, 40)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[5:] == pytest.approx([1 + math.cos(math.pi * k / 36) for k in range(1, 37)])
    assert rates[40] == pytest.approx(0.0, abs=1e-9)


# ----------------------------------------------------------------------------------------------------- what is shown


def test_strengths_of_augmentation_are_what_they_say():
    widest = {}
    for name, (degrees, smallest, largest) in STRENGTHS.items():
        drawn = [draw_augmentation(np.random.default_rng(i), degrees, smallest, largest) for i in range(400)]
        scales = [float(np.hypot(a[0, 0], a[0, 1])) for a in drawn]
        angles = [abs(float(np.degrees(np.arctan2(-a[0, 1], a[1, 1])))) for a in drawn]
        assert smallest <= min(scales) < smallest + 0.05
        assert largest - 0.05 < max(scales) <= largest + 1e-6
        assert 0.9 * degrees < max(angles) <= degrees + 1e-4
        widest[name] = max(angles)
    assert widest["light"] < widest["medium"] < widest["strong"]


def test_flags_reach_the_pictures_that_are_trained_on(shared_dataset):
    def first_batch(*flags) -> dict:
        words = ["--data_path", str(shared_dataset), "--image_size", "64", "--augment", "online", *flags]
        config = TrainConfig.from_flags(build_parser().parse_overrides(words))
        return augmented(config, open_data(config, None, None)[0]).read_batch([(epoch, 1) for epoch in range(100)])

    def widest(batch: dict) -> float:
        affine = batch["affine"]
        return torch.rad2deg(torch.atan2(-affine[:, 0, 1], affine[:, 1, 1])).abs().max().item()

    plain = first_batch()
    assert "colors" not in plain
    assert (plain["mask"] == plain["mask"][0]).all()
    assert 5 < widest(plain) <= 10
    assert first_batch("--color_jitter")["colors"].unique(dim=0).shape[0] > 80
    assert widest(first_batch("--augment_strength", "strong")) > 12
    uncertain = first_batch("--augment_uncertain")["mask"]
    assert (uncertain != uncertain[0]).any()


def test_sides_are_multiples_of_the_stride_around_the_size():
    assert possible_sizes(256, 32, 0.25) == [192, 224, 256, 288, 320]
    assert possible_sizes(100, 32, 0.3) == [96, 100, 128]
    assert possible_sizes(64, 32, 0.9) == [64, 96]  # batch norm needs more than one pixel


def test_steps_train_at_sides_that_vary_and_masks_stay_masks():
    how = BatchAugmentation(multi_scale=0.5, image_size=8, stride=4, seed=1)
    run, seen = make_run(Plain(), augmentation=how), []
    forward = run.forward
    run.forward = lambda images: seen.append(images.shape[-1]) or forward(images)
    run.forward.parameters = forward.parameters
    for step in range(12):
        run.state.progress.step = step
        batch = make_batch()
        batch["mask"] = 1 + 2 * batch["mask"]  # as of pet and border: nothing between may come of them
        _, targets = augment_batch(batch, Plain.task, how, torch.device("cpu"), 0, step)
        assert targets.unique().tolist() == [1, 3]
        assert targets.dtype == torch.uint8
        assert run.train_batch(make_batch())[2] == 7
    assert set(seen) == {8, 12}
    images, _ = augment_batch(make_batch(), Plain.task, how, torch.device("cpu"), 0, 7)
    assert images.shape[-1] == seen[7]  # whatever came before


def test_a_fraction_of_the_training_set_is_even_and_nested():
    pets = [SimpleNamespace(breed=i % 4, name=str(i)) for i in range(83)]
    parts = [{p.name for p in stratified_subset(pets, percent / 100, 3)} for percent in range(1, 100)]
    assert [len(part) for part in parts] == [round(83 * percent / 100) for percent in range(1, 100)]
    assert all(small <= large for small, large in zip(parts, parts[1:]))
    for part in parts:
        breeds = [sum(int(name) % 4 == breed for name in part) for breed in range(4)]
        assert max(breeds) - min(breeds) <= 2
    assert parts[49] != {p.name for p in stratified_subset(pets, 0.5, 4)}
    assert stratified_subset(pets, 0.001, 3) == []


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_say_what_flags_could_say_and_the_reports_values_are_the_defaults():
    assert RECIPES["report"] == {}
    assert TrainConfig.from_flags({}) == TrainConfig()
    for values in RECIPES.values():
        for name, value in values.items():
            assert is_valid(TrainConfig, name, value), name
            words = [f"--{name}"] if value is True else [f"--{name}", str(value)]
            assert build_parser().parse_overrides(words) == {name: value}


def test_a_recipe_gives_way_to_every_flag_and_is_resumed_exactly(tmp_path, shared_dataset):
    flags = ("--data_path", shared_dataset, "--recipe", "strong", "--scheduler", "none", "--multi_scale", 0.5)
    flags += ("--attention", "se", "--color_jitter", "--ema", 0.9, "--batch_size", 16, *TINY)
    contents = []
    for name, first in (("whole", 2), ("parts", 1)):
        folder = tmp_path / name
        folder.mkdir()
        said = run_ok("train.py", *flags, "--epochs", first, cwd=folder)
        if first == 1:
            run_ok("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1, cwd=folder)
        contents.append(load_checkpoint(folder / "saved_models/tiny_last.pth"))
    whole, parts = contents
    assert "recipe strong: bce_dice, AdamW" in said
    assert "attention se" in said
    assert whole["settings"]["scheduler"] == "none"
    assert whole["settings"]["learning_rate"] == 3e-2
    assert whole["settings"]["augment"] == "online"
    assert whole["model"]["config"] == {"out_channels": 1, "attention": "se"}
    for kind in (lambda c: c["weights"], lambda c: c["average"]["trained_weights"]):
        assert all(torch.equal(value, kind(parts)[key]) for key, value in kind(whole).items())
    assert whole["average"]["updates"] == parts["average"]["updates"] == 4
    key = "head.weight"
    assert not torch.equal(whole["weights"][key], whole["average"]["trained_weights"][key])
    # What is validated, saved as best and evaluated is the average: the figures are the same.
    run_ok("evaluate.py", "--data_path", shared_dataset, "--subset", "valid", "--json", "e.json", cwd=folder)
    best = load_checkpoint(folder / "saved_models/tiny_best.pth")["progress"]["best_dice"]
    assert f'"dice": {best:.6f}'.rstrip("0") in (folder / "e.json").read_text()


def test_a_checkpoint_from_before_recipes_goes_on(trained, shared_dataset, tmp_path):
    content = load_checkpoint(trained / "saved_models/tiny_last.pth")
    newer = ("recipe", "optimizer", "weight_decay", "ema", "augment_strength", "multi_scale", "mix", "attention")
    for name in (*newer, "classes", "train_fraction"):
        del content["settings"][name]
    content["model"]["config"] = {"out_channels": 1}
    (tmp_path / "saved_models").mkdir()
    torch.save({**content, "format_version": 1}, tmp_path / "saved_models/tiny_last.pth")
    flags = ("train.py", "--data_path", shared_dataset, "--resume", "--epochs", 1)
    assert_one_error(run_script(*flags, "--optimizer", "adamw", cwd=tmp_path), "optimizer adam (now adamw)")
    assert_one_error(run_script(*flags, "--ema", cwd=tmp_path), "ema 0.0 (now 0.99)")
    assert "recipe report: bce, Adam 0.03" in run_ok(*flags, cwd=tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--augment_strength", "strong"], ["--augment_strength needs --augment bulk or online"]),
        (
            ["--recipe", "strong", "--augment", "off", "--color_jitter"],
            ["--color_jitter needs --augment"],
        ),
        (["--weight_decay", "0.1"], ["--weight_decay needs --optimizer adamw"]),
        (["--ema", "1"], ["1 is not between 0 and 1"]),
        (["--multi_scale", "-0.1"], ["-0.1 is not between 0 and 1"]),
        (["--multi_scale", "0.2"], ["no multiple of 32 lies within 0.2 of 64"]),
        (["--mix", "cutmix", "--batch_size", "1"], ["--mix needs two images"]),
        (["--train_fraction", "0.001"], ["leaves no image to train on"]),
        (["--train_fraction", "1.5"], ["not between 0 and 1"]),
        (["--recipe", "secret"], ["invalid choice: 'secret'"]),
        (["--classes", "trimap", "--augment_uncertain"], ["--augment_uncertain replaces the border"]),
    ],
)
def test_flags_that_do_not_fit_end_in_one_line(tmp_path, shared_dataset, flags, words):
    done = run_script("train.py", "--data_path", shared_dataset, *TINY, *flags, cwd=tmp_path)
    assert_one_error(done, *words)
    assert not list(tmp_path.glob("saved_models/*"))


# ------------------------------------------------------------------------------------------------ pictures made of two


def two_worlds(count: int = 6):
    """Pictures whose pixels tell which one they are from, each with a pet in a place of its own."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 12, 16).clone()
    masks = torch.zeros(count, 1, 12, 16, dtype=torch.uint8)
    for i in range(count):
        masks[i, :, i : i + 4, 2 * i : 2 * i + 5] = 1
    return images, masks


@pytest.mark.parametrize("kind", ["paste", "cutmix"])
@pytest.mark.parametrize("trimap", [False, True])
def test_mixed_pictures_are_whole_in_every_pixel(kind, trimap):
    images, masks = two_worlds()
    targets, task = (2 - masks, TASKS["trimap"]) if trimap else (masks, TASKS["binary"])
    mixed, answers = mix(images, targets, kind, 0.5, np.random.default_rng(3), task)
    changed = 0
    for i in range(len(images)):
        sources = set(mixed[i].unique().tolist())
        (other,) = (sources - {float(i)}) or {None}
        if other is None:
            assert torch.equal(answers[i], targets[i])
            continue
        changed += 1
        taken = mixed[i, :1] == other
        assert torch.equal(answers[i], torch.where(taken, targets[int(other)], targets[i]))
        if kind == "paste":
            assert torch.equal(taken, masks[int(other)] == 1)
        else:
            rows, columns = (taken[0].any(dim=d).nonzero().flatten() for d in (1, 0))
            assert taken.sum() == len(rows) * len(columns)  # a rectangle
            assert 0.05 < taken.float().mean() < 0.6
    assert 0 < changed < len(images)
    again = mix(images, targets, kind, 0.5, np.random.default_rng(3), task)
    assert torch.equal(again[0], mixed)
    assert torch.equal(mix(images, targets, kind, 1e-9, np.random.default_rng(3), task)[0], images)


def test_a_picture_alone_in_its_batch_stays_itself():
    images, masks = two_worlds(1)
    mixed, answers = mix(images, masks, "cutmix", 1.0, np.random.default_rng(0), TASKS["binary"])
    assert torch.equal(mixed, images)
    assert torch.equal(answers, masks)
