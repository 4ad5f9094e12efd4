"""Writes a trained network into one file: for other programs, or as a small checkpoint to publish.

python src/export.py --model_path saved_models/unet_best.pth --formats pt2,onnx,weights --data_path dataset/images
"""

from evaluation.config import ExportConfig
from runtime import cli


def build_parser() -> cli.Parser:
    """Flags of export.py."""
    return cli.Parser("export.py", __doc__, ExportConfig)


def main(argv=None) -> None:
    """Reads the flags and exports."""
    config = ExportConfig(**build_parser().parse_overrides(argv))
    cli.import_torch()
    from evaluation.export import export_checkpoint

    export_checkpoint(config)


if __name__ == "__main__":
    cli.run(main, less_memory="")
