"""Distillation and starting from a trained network."""

import pytest
import torch
import torch.nn.functional as F

from evaluation.predict import Predictor
from helpers import TINY, assert_one_error, log_rows, run_ok, run_script
from models.checkpoint import load_checkpoint, save_checkpoint
from runtime.device import Precision
from stubs import CPU, Brightness, Plain, make_masks, make_net
from training.step import training_step
from training.terms import Batch, Term
from training.terms.distill import DistillTerm
from training.terms.fixmatch import FixMatchTerm, UnlabeledBatches


@pytest.mark.parametrize("size", [32, 64, 96])
def test_probabilities_have_the_size_of_the_images(size):
    model = Brightness().eval()
    images = F.interpolate(torch.rand(2, 3, 4, 4) * 255, (64, 64), mode="bilinear")
    term = DistillTerm(Predictor(model, Precision(CPU)), size)
    batch = term.prepare(None, Batch(images, None, scale=0.25), 0, 0)
    assert batch.target.shape == (2, 1, 64, 64)
    assert not batch.target.requires_grad
    assert (batch.target - model(images).sigmoid()).abs().mean() < 0.02
    assert (batch.images, batch.scale) == (None, 0.25)


PLAIN = Predictor(Plain(), Precision(CPU))


def gradients(targets: torch.Tensor, *more: tuple[Term, Batch], micro_batches: int = 1) -> list[torch.Tensor]:
    """Of one step from masks and more, without clipping: gradients of few pixels are small."""
    torch.manual_seed(0)
    model, images = Plain().train(), torch.rand(len(targets), 3, 16, 16) * 255
    masks = make_masks(model), Batch(images, targets, scale=1 / len(targets))
    training_step(make_net(model), *zip(masks, *more), micro_batches)
    return [p.grad for p in model.parameters()]


def taught(probabilities: torch.Tensor) -> tuple[Term, Batch]:
    return DistillTerm(PLAIN, 16), Batch(None, probabilities, scale=1 / len(probabilities))


def test_masks_and_probabilities_are_learned_alike():
    targets = torch.randint(0, 2, (4, 1, 16, 16), dtype=torch.uint8)
    for one, two in zip(gradients(targets), gradients(targets, taught(targets.float()))):
        torch.testing.assert_close(2 * one, two)
    teacher = taught(torch.rand(4, 1, 16, 16))
    for one, two in zip(gradients(targets, teacher), gradients(targets, teacher, micro_batches=2)):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("count", [1, 4])
def test_pieces_of_unequal_size_count_by_their_images(count):
    targets = torch.randint(0, 2, (3, 1, 16, 16), dtype=torch.uint8)
    labels = torch.randint(0, 2, (count, 1, 16, 16))
    part = Batch(torch.rand(count, 3, 16, 16) * 255, labels.float(), labels >= 0, torch.ones(count, 1), 1 / count)
    extra = FixMatchTerm(UnlabeledBatches([], 1, 0, 1), PLAIN, 0.5), part
    whole, micro_batches = (gradients(targets, extra, micro_batches=count) for count in (1, 2))
    for one, two, without in zip(whole, micro_batches, gradients(targets)):
        torch.testing.assert_close(one, two)
        assert not torch.allclose(one, without)


def test_a_student_resumes_with_its_teacher_alone(trained, shared_dataset, tmp_path):
    teacher, other = tmp_path / "teacher.pth", tmp_path / "other.pth"
    checkpoint = load_checkpoint(trained / "saved_models/tiny_best.pth")
    save_checkpoint(checkpoint, [teacher])
    flags, resumed = (("train.py", "--data_path", shared_dataset, *more) for more in (TINY, ("--resume",)))
    run_ok(*flags, "--teacher", teacher, "--epochs", 1, "--seed", 1, cwd=tmp_path)
    checkpoint.weights["head.bias"] += 1
    save_checkpoint(checkpoint, [other])
    done = run_script(*resumed, "--epochs", 1, "--teacher", other, cwd=tmp_path)
    assert_one_error(done, "with another --teacher (its content counts)")
    teacher = teacher.rename(tmp_path / "moved.pth")
    run_ok(*resumed, "--epochs", 1, "--teacher", teacher, cwd=tmp_path)
    last = load_checkpoint(tmp_path / "saved_models/tiny_last.pth")
    assert last.terms["teacher"] == {"fingerprint": load_checkpoint(teacher).fingerprint()}
    assert last.data.seen_names == sorted({*checkpoint.data.train_names} - {*last.data.train_names}) != []
    plain = tmp_path / "plain"
    run_ok(*flags, "--epochs", 1, "--seed", 1, cwd=plain)
    # Cross-entropy against the teacher comes on top of that against the masks.
    assert float(log_rows(tmp_path)[0]["train_loss"]) > 1.2 * float(log_rows(plain)[0]["train_loss"])
    assert_one_error(run_script(*resumed, "--teacher", teacher, cwd=plain), "was trained without --teacher")


def test_a_teacher_of_another_task_is_refused(trained, shared_dataset, tmp_path):
    teacher = trained / "saved_models/tiny_best.pth"
    flags = ("train.py", "--data_path", shared_dataset, *TINY, "--classes", "trimap", "--teacher", teacher)
    assert_one_error(run_script(*flags, cwd=tmp_path), "has learned binary classes, this run learns trimap")


def test_init_takes_network_weights_and_size(trained, shared_dataset, shared_own, tmp_path):
    file = trained / "saved_models/tiny_best.pth"
    before = load_checkpoint(file)
    flags = ("train.py", "--data_path", shared_own, "--init", file, "--epochs", 1, "--learning_rate", 1e-30)
    assert_one_error(run_script(*flags, "--attention", "se", cwd=tmp_path), "none (now se); leave out --attention")
    said = run_ok(*flags, cwd=tmp_path)
    assert "encoder from tiny_best.pth, like the whole network" in said
    after = load_checkpoint(tmp_path / "saved_models/tiny_best.pth")
    assert after.image_size == before.image_size == 64
    for name, value in before.weights.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(after.weights[name], value), name
    assert after.data.seen_names == sorted(before.data.train_names)
    evaluate = ("evaluate.py", "--data_path", shared_dataset, "--subset", "all")
    assert_one_error(run_script(*evaluate, cwd=tmp_path), "was trained on 32 of these 40 images")
    run_ok("train.py", "--data_path", shared_own, "--resume", "--epochs", 1, cwd=tmp_path)
    assert load_checkpoint(tmp_path / "saved_models/tiny_last.pth").data.seen_names == after.data.seen_names


def test_validation_images_that_initial_weights_saw_are_told(trained, shared_dataset, tmp_path):
    flags = ("--init", trained / "saved_models/tiny_best.pth", "--seed", 7, "--epochs", 1)
    done = run_script("train.py", "--data_path", shared_dataset, *flags, cwd=tmp_path)
    assert done.returncode == 0
    assert "validation images were seen by the initial weights or the teacher" in done.stderr


def test_seen_images_are_known_with_and_without_folders(trained):
    checkpoint = load_checkpoint(trained / "saved_models/tiny_best.pth")
    checkpoint.data.train_names, checkpoint.data.seen_names = ["cats/a_1", "b"], ["more/deep/c"]
    assert checkpoint.seen_names() == {"cats/a_1", "a_1", "b", "more/deep/c", "c"}
