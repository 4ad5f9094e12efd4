"""Scores a checkpoint.

python src/evaluate.py --model_name unet --model_path saved_models/unet_best.pth --data_path dataset
"""

from evaluation.config import EvalConfig
from runtime import cli


def build_parser() -> cli.Parser:
    """Flags of evaluate.py."""
    return cli.Parser("evaluate.py", __doc__, EvalConfig)


def main(argv=None) -> None:
    """Reads the flags and scores."""
    config = EvalConfig(**build_parser().parse_overrides(argv))
    cli.import_torch()
    from evaluation.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    cli.run(main)
