"""Errors whose message names a flag or a command: a real call makes the error, and another follows the advice."""

import importlib
import re
import shlex

import pytest
import torch

from helpers import TINY, assert_one_error, copy_run, make_dataset, run_ok, run_script, scene, write_own
from runtime.errors import UsageError

DATA, BEST = "--data_path dataset", "--model_path saved_models/tiny_best.pth"
PUBLISHED = "published/tiny_best_weights.pth"
MISSING = "mps" if torch.cuda.is_available() else "cuda"  # a device
OWN = "--save_dir new --log_dir new"  # the folders of runs that others must not find


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained, shared_dataset):
    """A folder as a user has it: datasets, photographs and runs."""
    folder = copy_run(trained, tmp_path_factory.mktemp("advice"))
    (folder / "dataset").symlink_to(shared_dataset)
    make_dataset(folder / "fewer", count=30)  # in another split: of the same names others are for training
    write_own(folder / "own", 20)
    for part in ("train", "valid"):
        write_own(folder / "divided" / part, 6)
    scene().save(folder / "a.png")
    runs = {
        "of_divided": "--data_path divided",
        "larger": f"{DATA} --image_size 96",
        "species": f"{DATA} --classes species",
        "cosine": f"{DATA} --scheduler cosine",
        "noise": DATA,
    }
    for name, flags in runs.items():
        script = "pretrain.py" if name == "noise" else "train.py"
        flags = (*TINY, "--epochs", 1, *flags.split(), "--save_dir", name, "--log_dir", name)
        run_ok(script, *flags, cwd=folder)
    weights = ("--save_dir", "saved_models", "--formats", "weights", "--output_path", "published")
    run_ok("export.py", *weights, cwd=folder)
    return folder


LABEL_ERRORS = "--data_path fewer --allow_seen --label_errors --report r"
FEWER, DIVIDED = f"--data_path fewer {BEST}", "--data_path divided --save_dir of_divided"
# What both calls have; what the failing one has; words of the error; what the call has that follows the advice.
EVALUATE = [
    (FEWER, "", "leakage; name another --subset, or say --allow_seen", "--allow_seen"),
    (f"{DATA} {BEST}", "--subset train", "name another --subset", "--subset test"),
    (DIVIDED, "", "name another --subset", "--subset valid"),
    (f"{FEWER} --allow_seen", "--threshold auto", "name a number as --threshold", "--threshold 0.4"),
    (LABEL_ERRORS, f"{BEST} {PUBLISHED}", "leave it out of --model_path", f"--model_path {PUBLISHED}"),
    (f"{DATA} {BEST} --label_errors", "", "--report DIR", "--report r"),
    (f"{DATA} {BEST} --threshold auto", "--subset valid", "--subset test", "--subset test"),
    (f"{DATA} --threshold auto {BEST}", PUBLISHED, "name one", ""),
    (f"{DATA} --save_dir species", "--threshold 0.4", "leave it out", ""),
    (f"{DATA} {BEST} --compare larger/tiny_best.pth", "", "--original_size", "--original_size"),
    (f"{DATA} {BEST}", "--model_name unet", "leave it out", ""),
    (f"{DATA} {BEST}", f"--device {MISSING}", "not available here; there is", "--device cpu"),
]
INFERENCE = [
    (f"--data_path divided {BEST}", "", "name another --subset", "--subset valid"),
    (f"a.png {BEST}", "--save masks,trimaps", "leave trimaps out", "--save masks"),
    (f"a.png {BEST}", "--output_path .", "name another folder", "--output_path elsewhere"),
]
PLOT = [
    ("", "--log_dir dataset", "--log_dir", "--log_dir logs"),
    ("--log_dir noise", "", "--curves loss", "--curves loss"),
]
PUPIL = f"{DATA} {OWN} --unlabeled rest"
TRAIN = [
    (f"{DATA} {OWN}", "--resume", "leave --resume out", ""),
    (f"{DATA} {OWN}", f"--resume {PUBLISHED}", "with --init", f"--init {PUBLISHED}"),
    (f"{DATA} --save_dir larger --log_dir larger --resume", "--ema --loss dice", "leave out --ema, --loss", ""),
    (f"{DATA} --save_dir cosine --log_dir cosine --resume", "--patience 2", "leave it out", ""),
    (f"--data_path divided {OWN}", "--fold 1/2", "leave --fold out", ""),
    (f"--data_path own {OWN}", "--split official", "use --split 80-10-10", "--split 80-10-10"),
    (f"--data_path own {OWN}", "--classes trimap", "use --classes binary", "--classes binary"),
    (f"{DATA} {OWN}", "--groups nowhere.txt", "regex:PATTERN", r"--groups 'regex:_(\d+)\d'"),
    (f"{DATA} {OWN} --distort blur", "", "--augment bulk or online", "--augment online"),
    (f"{PUPIL} --train_fraction 0.5", "", "add --ema", "--ema"),
    (f"{PUPIL} --ema", "", "--train_fraction leaves out", "--train_fraction 0.5"),
    (f"{DATA} {OWN} --loss dice", "--class_weights auto", "leave it out", ""),
    (f"{DATA} {OWN} --augment_uncertain", "--classes trimap", "leave one of them out", ""),
    (f"{DATA} {OWN} --sizes 64:2", "", "use a larger --epochs", "--epochs 3"),
    (f"{DATA} {OWN} --init saved_models/tiny_best.pth", "--encoder_weights auto", "leave --encoder_weights out", ""),
    (f"{DATA} {OWN}", "--encoder_weights imagenet", "use --encoder_weights none", "--encoder_weights none"),
    (f"{DATA} --teacher saved_models/tiny_best.pth", "", "name another --save_dir", OWN),
]
SCRIPTS = {"evaluate": EVALUATE, "inference": INFERENCE, "plot_dice_curve": PLOT}
CASES = [(script, *case) for script, cases in SCRIPTS.items() for case in cases]


@pytest.mark.parametrize(("script", "both", "bad", "words", "good"), CASES)
def test_advice_works(folder, monkeypatch, script, both, bad, words, good):
    monkeypatch.chdir(folder)
    main = importlib.import_module(script).main
    with pytest.raises(UsageError, match=re.escape(words)):
        main(shlex.split(f"{both} {bad}"))
    main(shlex.split(f"{both} {good}"))


@pytest.mark.parametrize(("both", "bad", "words", "good"), TRAIN)
def test_advice_of_training_works(folder, tmp_path, both, bad, words, good):
    def command(flags: str) -> tuple:  # the shortest run
        flags = [str(tmp_path) if flag == "new" else flag for flag in shlex.split(flags)]
        given = {"--resume", "--init", "--encoder_weights", "--epochs"} & {*flags}
        more = [] if "--resume" in given else ["--image_size", 64]
        more += [] if given & {"--resume", "--epochs"} else ["--epochs", 1]
        return "train.py", *more, *([] if given - {"--epochs"} else ["--encoder_weights", "none"]), *flags

    assert_one_error(run_script(*command(f"{both} {bad}"), cwd=folder), words)
    run_ok(*command(f"{both} {good}"), cwd=folder)


def test_without_a_checkpoint_the_command_and_the_path_of_the_message_work(folder):
    flags = (*DATA.split(), "--save_dir", "a b", "--log_dir", "a b")
    done = run_script("evaluate.py", *flags, cwd=folder)
    command, path = re.search(
        r"train one with `python src/(.*)`, or name another with --model_path (\S+)", done.stderr
    ).groups()
    assert_one_error(done, "there is no checkpoint a b/")
    run_ok("inference.py", "a.png", "--save_dir", "a b", "--model_path", path, "--save", "masks", cwd=folder)
    script, *words = shlex.split(command)
    run_ok(script, *words, *DATA.split(), *TINY, "--epochs", 1, cwd=folder)
    run_ok("evaluate.py", *flags, cwd=folder)
