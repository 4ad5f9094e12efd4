"""A page in the browser: drop a photograph, see the pet's outline and cutout, move the threshold, download.

python src/demo.py
"""

from evaluation.config import DemoConfig
from runtime import cli


def build_parser() -> cli.Parser:
    """Flags of demo.py."""
    return cli.Parser("demo.py", __doc__, DemoConfig)


def main(argv=None) -> None:
    """Reads the flags and serves the page."""
    config = DemoConfig(**build_parser().parse_overrides(argv))
    cli.import_torch()
    from evaluation.page import serve

    serve(config)


if __name__ == "__main__":
    cli.run(main, less_memory="")
