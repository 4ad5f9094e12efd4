"""EfficientNet-Lite: torchvision's EfficientNet with ReLU6 and without squeeze-and-excitation, for processors.

Tan, Le, 2019: https://arxiv.org/abs/1905.11946, with the changes of
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from functools import partial

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

# Factors of width and depth.
LITE = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
LITE_NORMALIZATION = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))  # mean and standard deviation of R, G, B
# Expansion, kernel, stride, channels in and out, blocks. Factors of depth leave the first and the last stage alone.
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def efficientnet_lite(name: str) -> EfficientNet:
    """The classifier of 1,000 classes with fresh weights."""
    width, depth = LITE[name]
    block = partial(MBConv, se_layer=nn.Identity)
    stages = [
        MBConvConfig(*stage, width, 1.0 if stage in (STAGES[0], STAGES[-1]) else depth, block) for stage in STAGES
    ]
    model = EfficientNet(stages, dropout=0.2, norm_layer=partial(nn.BatchNorm2d, eps=1e-3), last_channel=1280)
    for module in list(model.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, child_name, nn.ReLU6(inplace=True))
    return model
