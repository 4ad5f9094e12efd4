"""Errors whose message names a flag or a command: a real call makes the error, and another follows the advice."""

import importlib
import re
import shlex

import pytest
import torch

from helpers import SRC, TINY, assert_one_error, copy_run, make_dataset, run_ok, run_script, scene, write_own
from runtime.errors import UsageError
from runtime.files import lock_file

DATA, BEST = ("--data_path", "dataset"), ("--model_path", "saved_models/tiny_best.pth")
MISSING = "mps" if torch.cuda.is_available() else "cuda"  # a device
OWN = ("--save_dir", "new", "--log_dir", "new")  # the folders of runs that others must not find


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
        "of_divided": ("--data_path", "divided"),
        "larger": (*DATA, "--image_size", 96),
        "species": (*DATA, "--classes", "species"),
        "cosine": (*DATA, "--scheduler", "cosine"),
    }
    for name, flags in runs.items():
        run_ok("train.py", *TINY, "--epochs", 1, *flags, "--save_dir", name, "--log_dir", name, cwd=folder)
    run_ok("pretrain.py", *DATA, *TINY, "--epochs", 1, "--save_dir", "noise", "--log_dir", "noise", cwd=folder)
    weights = ("--save_dir", "saved_models", "--formats", "weights", "--output_path", "published")
    run_ok("export.py", *weights, cwd=folder)
    return folder


# The flags of a call that fails; words of the error; flags of the call that follows the advice.
EVALUATE = {
    "the test part was trained on": (
        ("--data_path", "fewer", *BEST),
        "leakage; say --allow_seen",
        ("--data_path", "fewer", *BEST, "--allow_seen"),
    ),
    "another part was trained on": (
        (*DATA, *BEST, "--subset", "train"),
        "use --subset test, or say --allow_seen",
        (*DATA, *BEST, "--subset", "test"),
    ),
    "the only other part was trained on": (
        ("--data_path", "divided", "--save_dir", "of_divided", "--subset", "train"),
        "leakage; say --allow_seen",
        ("--data_path", "divided", "--save_dir", "of_divided", "--subset", "train", "--allow_seen"),
    ),
    "no test part": (
        ("--data_path", "divided", "--save_dir", "of_divided"),
        "name another --subset",
        ("--data_path", "divided", "--save_dir", "of_divided", "--subset", "valid"),
    ),
    "validation images of a threshold were trained on": (
        ("--data_path", "fewer", *BEST, "--allow_seen", "--threshold", "auto"),
        "name a number as --threshold",
        ("--data_path", "fewer", *BEST, "--allow_seen", "--threshold", "0.4"),
    ),
    "validation images to rank were trained on": (
        ("--data_path", "fewer", *BEST, "published/tiny_best_weights.pth", "--allow_seen", "--label_errors")
        + ("--report", "r"),
        "leave it out of --model_path",
        ("--data_path", "fewer", "--model_path", "published/tiny_best_weights.pth", "--allow_seen", "--label_errors")
        + ("--report", "r"),
    ),
    "nowhere to write label errors": (
        (*DATA, *BEST, "--label_errors"),
        "--report DIR",
        (*DATA, *BEST, "--label_errors", "--report", "r"),
    ),
    "threshold of the images that are scored": (
        (*DATA, *BEST, "--threshold", "auto", "--subset", "valid"),
        "--subset test",
        (*DATA, *BEST, "--threshold", "auto", "--subset", "test"),
    ),
    "threshold of an ensemble": (
        (*DATA, *BEST, "published/tiny_best_weights.pth", "--threshold", "auto"),
        "name one",
        (*DATA, *BEST, "--threshold", "auto"),
    ),
    "threshold of named classes": (
        (*DATA, "--save_dir", "species", "--threshold", "0.4"),
        "leave it out",
        (*DATA, "--save_dir", "species"),
    ),
    "tiles and several scales": ((*DATA, *BEST, "--resize", "tile", "--tta"), "leave one out", (*DATA, *BEST, "--tta")),
    "networks of two sizes": (
        (*DATA, *BEST, "--compare", "larger/tiny_best.pth"),
        "--original_size",
        (*DATA, *BEST, "--compare", "larger/tiny_best.pth", "--original_size"),
    ),
    "another model": ((*DATA, *BEST, "--model_name", "unet"), "leave it out", (*DATA, *BEST)),
    "a device that is not there": (
        (*DATA, *BEST, "--device", MISSING),
        "not available here; there is",
        (*DATA, *BEST, "--device", "cpu"),
    ),
}
INFERENCE = {
    "no test part": (
        ("--data_path", "divided", *BEST),
        "name another --subset",
        ("--data_path", "divided", *BEST, "--subset", "valid"),
    ),
    "no trimaps": (
        ("a.png", *BEST, "--save", "masks,trimaps"),
        "leave trimaps out",
        ("a.png", *BEST, "--save", "masks"),
    ),
    "results among the images": (
        ("a.png", *BEST, "--output_path", "."),
        "name another folder",
        ("a.png", *BEST, "--output_path", "elsewhere"),
    ),
}
PLOT = {
    "no log": (("--log_dir", "dataset"), "--log_dir", ("--log_dir", "logs")),
    "no Dice": (("--log_dir", "noise"), "--curves loss", ("--log_dir", "noise", "--curves", "loss")),
}
TRAIN = {
    "nothing to resume": ((*DATA, *OWN, "--resume"), "leave --resume out", (*DATA, *OWN)),
    "published weights to resume": (
        (*DATA, *OWN, "--resume", "published/tiny_best_weights.pth"),
        "with --init",
        (*DATA, *OWN, "--init", "published/tiny_best_weights.pth"),
    ),
    "other settings": (
        (*DATA, "--save_dir", "larger", "--log_dir", "larger", "--resume", "--ema", "--loss", "dice"),
        "leave these flags out",
        (*DATA, "--save_dir", "larger", "--log_dir", "larger", "--resume"),
    ),
    "patience of a resumed cosine": (
        (*DATA, "--save_dir", "cosine", "--log_dir", "cosine", "--resume", "--patience", 2),
        "leave it out",
        (*DATA, "--save_dir", "cosine", "--log_dir", "cosine", "--resume"),
    ),
    "folds of parts": (
        ("--data_path", "divided", *OWN, "--fold", "1/2"),
        "leave --fold out",
        ("--data_path", "divided", *OWN),
    ),
    "no lists": (
        ("--data_path", "own", *OWN, "--split", "official"),
        "use --split 80-10-10",
        ("--data_path", "own", *OWN, "--split", "80-10-10"),
    ),
    "no trimaps": (
        ("--data_path", "own", *OWN, "--classes", "trimap"),
        "use --classes binary",
        ("--data_path", "own", *OWN, "--classes", "binary"),
    ),
    "no groups": (
        (*DATA, *OWN, "--groups", "nowhere.txt"),
        "regex:PATTERN",
        (*DATA, *OWN, "--groups", r"regex:_(\d+)\d"),
    ),
    "distortion without augmentation": (
        (*DATA, *OWN, "--distort", "blur"),
        "--augment bulk or online",
        (*DATA, *OWN, "--distort", "blur", "--augment", "online"),
    ),
    "no average": (
        (*DATA, *OWN, "--unlabeled", "rest", "--train_fraction", 0.5),
        "add --ema",
        (*DATA, *OWN, "--unlabeled", "rest", "--train_fraction", 0.5, "--ema"),
    ),
    "no rest": (
        (*DATA, *OWN, "--unlabeled", "rest", "--ema"),
        "--train_fraction leaves out",
        (*DATA, *OWN, "--unlabeled", "rest", "--ema", "--train_fraction", 0.5),
    ),
    "weights of no use": (
        (*DATA, *OWN, "--class_weights", "auto", "--loss", "dice"),
        "leave it out",
        (*DATA, *OWN, "--loss", "dice"),
    ),
    "border at random in a trimap": (
        (*DATA, *OWN, "--augment_uncertain", "--classes", "trimap"),
        "leave one of them out",
        (*DATA, *OWN, "--augment_uncertain"),
    ),
    "no epoch at full size": (
        (*DATA, *OWN, "--sizes", "64:2"),
        "use a larger --epochs",
        (*DATA, *OWN, "--sizes", "64:2", "--epochs", 3),
    ),
    "two starts of an encoder": (
        (*DATA, *OWN, "--init", BEST[1], "--encoder_weights", "auto"),
        "leave --encoder_weights out",
        (*DATA, *OWN, "--init", BEST[1]),
    ),
    "no encoder": (
        (*DATA, *OWN, "--encoder_weights", "imagenet"),
        "use --encoder_weights none",
        (*DATA, *OWN, "--encoder_weights", "none"),
    ),
    "its own teacher": (
        (*DATA, "--teacher", BEST[1]),
        "name another --save_dir",
        (*DATA, "--teacher", BEST[1], *OWN),
    ),
}
SCRIPTS = {"evaluate": EVALUATE, "inference": INFERENCE, "plot_dice_curve": PLOT}
CASES = [
    pytest.param(script, *case, id=f"{script}: {name}") for script in SCRIPTS for name, case in SCRIPTS[script].items()
]


@pytest.mark.parametrize(("script", "bad", "words", "good"), CASES)
def test_advice_works(folder, monkeypatch, script, bad, words, good):
    monkeypatch.chdir(folder)
    main = importlib.import_module(script).main
    with pytest.raises(UsageError, match=re.escape(words)):
        main(list(map(str, bad)))
    main(list(map(str, good)))


@pytest.mark.parametrize(("bad", "words", "good"), TRAIN.values(), ids=TRAIN)
def test_advice_of_training_works(folder, tmp_path, bad, words, good):
    def command(flags) -> tuple:  # the shortest run
        flags = [tmp_path if flag == "new" else flag for flag in flags]
        given = {"--resume", "--init", "--encoder_weights", "--epochs"} & {*map(str, flags)}
        more = [] if "--resume" in given else ["--image_size", 64]
        more += [] if given & {"--resume", "--epochs"} else ["--epochs", 1]
        return "train.py", *more, *([] if given - {"--epochs"} else ["--encoder_weights", "none"]), *flags

    assert_one_error(run_script(*command(bad), cwd=folder), words)
    run_ok(*command(good), cwd=folder)


def test_without_a_checkpoint_the_command_and_the_path_of_the_message_work(folder):
    flags = (*DATA, "--save_dir", "a b", "--log_dir", "a b")
    done = run_script("evaluate.py", *flags, cwd=folder)
    command, path = re.search(
        r"train one with `python src/(.*)`, or name another with --model_path (\S+)", done.stderr
    ).groups()
    assert_one_error(done, "there is no checkpoint a b/")
    run_ok("inference.py", "a.png", "--save_dir", "a b", "--model_path", path, "--save", "masks", cwd=folder)
    script, *words = shlex.split(command)
    run_ok(script, *words, *DATA, *TINY, "--epochs", 1, cwd=folder)
    run_ok("evaluate.py", *flags, cwd=folder)


def test_a_pre_trained_network_is_given_to_training(folder, tmp_path):
    done = run_script("evaluate.py", *DATA, "--save_dir", "noise", cwd=folder)
    assert_one_error(done, "give it to train.py as --init")
    flags = ("--init", "noise/tiny_best.pth", "--epochs", 1, "--save_dir", tmp_path, "--log_dir", tmp_path)
    run_ok("train.py", *DATA, *flags, cwd=folder)


def test_a_run_beside_another_needs_folders_of_its_own(folder, tmp_path):
    with lock_file(folder / "saved_models/.tiny.lock", wait=False):
        flags = (*DATA, *TINY, "--epochs", 1)
        assert_one_error(run_script("train.py", *flags, cwd=folder), "a --save_dir and a --log_dir of its own")
        run_ok("train.py", *flags, "--save_dir", tmp_path, "--log_dir", tmp_path, cwd=folder)


@pytest.mark.parametrize("script", [path.name for path in sorted(SRC.glob("*.py")) if path.name != "utils.py"])
def test_the_help_that_a_wrong_flag_names_is_there(script, monkeypatch, capsys):
    main = importlib.import_module(script.removesuffix(".py")).main
    for flag, status, words in (("--wrong", 2, f"see python src/{script} --help"), ("--help", 0, "usage")):
        with pytest.raises(SystemExit) as left:
            main([flag])
        said = capsys.readouterr()
        assert left.value.code == status
        assert words in (said.err if status else said.out)
