"""A network of 3,000 parameters: registered as `tiny`, it makes runs quick and checkpoints small.

Its layers are those of the checkpoint in tests/frozen_1.0/: they stay as they are.

python tests/tiny.py src/train.py --data_path ...   # runs a script, or -c CODE, in which it is the default network
"""

import runpy
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"


def register(default: bool = False) -> None:
    """Adds the network, and with `default` makes it the one that scripts take when none is named.

    The default must be set before other modules of the project are imported.
    """
    from models import base, build, names
    from models.base import SegmentationModel, init_weights
    from models.unet import UpBlock, double_conv

    class TinyNet(SegmentationModel):
        """One level down and up again, with all that networks have: batch norm, a skip, attention."""

        stride = 32  # as of ResNet34-UNet, although it needs only 2

        def build(self, attention, decoder):
            self.stem = double_conv(self.in_channels, 6)
            self.down = double_conv(6, 12)
            self.ups = base.nn.ModuleList([UpBlock(12, 6, 6, attention)])
            self.head = base.nn.Conv2d(6, self.task.out_channels, 1)
            init_weights(self)
            for norm in (m for m in self.modules() if isinstance(m, base.nn.BatchNorm2d)):
                norm.momentum = 0.5  # tests train for few steps

        def body(self, x):
            skip = self.stem(x)
            return self.head(self.ups[0](self.down(base.F.max_pool2d(skip, 2)), skip))

    names.MODELS.append("tiny")
    build.NETWORKS["tiny"] = TinyNet
    if default:
        names.DEFAULT_MODEL = "tiny"


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = str(SRC)
    register(default=True)
    if sys.argv[0] == "-c":
        exec(compile(sys.argv.pop(1), "code", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
