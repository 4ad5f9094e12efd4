"""Recipes: what a run is trained with, unless a flag says otherwise. The one place where these values stand."""

# Adam, the learning rate and the loss of both reports, batches of one and scheduler of the other; the default.
REPORT = {
    "epochs": 10,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "loss": "bce",
    "optimizer": "adam",
    "weight_decay": 0.01,
    "scheduler": "plateau",
    "ema": 0.0,
    "augment": None,
    "augment_strength": "medium",
    "color_jitter": False,
    "mix": "none",
    "multi_scale": 0.0,
    "attention": "none",
}
# The best for the validation pictures of what benchmarks/study.py tried; see REPORT.md.
STRONG = {
    **REPORT,
    "epochs": 40,
    "learning_rate": 8e-4,
    "loss": "bce_dice",
    "optimizer": "adamw",
    "scheduler": "cosine",
    "ema": 0.99,
    "augment": "online",
    "color_jitter": True,
    "mix": "cutmix",
}
RECIPES = {"report": REPORT, "strong": STRONG}
DEFAULT_RECIPE = "report"


def apply_recipe(args, given: dict) -> None:
    """Puts into `args` what its recipe says, but for the flags that were given.

    Args:
        args: the flags, with `recipe`.
        given: only those on the command line.
    """
    for name, value in RECIPES[args.recipe].items():
        if name not in given:
            setattr(args, name, value)
