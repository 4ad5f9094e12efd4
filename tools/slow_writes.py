"""Runs src/train.py with writes to the disk made slow, so that a kill at a random moment often falls into one."""

import os
import random
import runpy
import sys
import time
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"
RNG = random.Random()  # not the global one, which train.py seeds


def slowed(function):
    """The function, with a pause before and after it."""

    def slow(*args, **kwargs):
        time.sleep(RNG.uniform(0, 0.5))
        result = function(*args, **kwargs)
        time.sleep(RNG.uniform(0, 0.3))
        return result

    return slow


if __name__ == "__main__":
    sys.path.insert(0, str(SRC))
    # The steps of a save between which a kill must do no harm: written, synced, renamed.
    os.fsync, os.replace = slowed(os.fsync), slowed(os.replace)
    runpy.run_path(str(SRC / "train.py"), run_name="__main__")
