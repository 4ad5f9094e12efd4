"""UNet decoders on encoders of torchvision, under its key names. A new encoder is a name in models/names.py."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.ops import Conv2dNormActivation, StochasticDepth

from models.attention import SELF_ATTENTION
from models.base import SegmentationModel, fold_channels, init_weights
from models.efficientnet_lite import LITE, LITE_NORMALIZATION, efficientnet_lite
from models.unet import UpBlock, double_conv

STRIDES = (16, 8, 4, 2, 1)  # of the skips, from the bottleneck up
HEAD = ("avgpool", "fc", "classifier", "norm", "permute", "flatten", "head")  # what comes after the features


class Float32Conv2d(nn.Conv2d):
    """A convolution that is trained in float32 on CPUs, also under autocast.

    oneDNN's gradient of depthwise convolutions of stride 2 or of 5x5 pixels takes up to 20 times as long in bf16.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def build_classifier(name: str) -> nn.Module:
    if name in LITE:
        return efficientnet_lite(name)
    # Each block of ResNet34 begins as the identity, so that from scratch the gradient reaches the first layers.
    return get_model(name, weights=None, **({"zero_init_residual": True} if name == "resnet34" else {}))


def build_encoder(name: str, channels: int = 3) -> nn.Module:
    """A classifier of images with so many channels, without its head, with fresh weights."""
    encoder = build_classifier(name)
    if channels != 3:
        first = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
        first.in_channels, first.weight = channels, nn.Parameter(fold_channels(first.weight.detach(), channels))
    for layer in encoder.modules():
        if isinstance(layer, StochasticDepth):
            layer.p = 0.0  # it would draw from torch's global random numbers, and a resumed run others
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        if depthwise and (layer.stride[0] > 1 or layer.kernel_size[0] > 3):
            layer.__class__ = Float32Conv2d
    for part in HEAD:
        if hasattr(encoder, part):
            delattr(encoder, part)
    # Convolutions of one pixel that only widen the last features belong to the head, too.
    if hasattr(encoder, "features") and isinstance(encoder.features[-1], Conv2dNormActivation):
        del encoder.features[-1]
    return encoder


def encode(encoder: nn.Module, x: torch.Tensor) -> dict[int, torch.Tensor]:
    """Normalised images (N, C, H, W), H and W multiples of 32, to the last features of each stride, by the stride."""
    width, features = x.shape[-1], {}
    for layer in getattr(encoder, "features", encoder.children()):
        x = layer(x)
        output = x.permute(0, 3, 1, 2) if isinstance(encoder, SwinTransformer) else x
        features[width // output.shape[-1]] = output
    return features


class EncoderUNet(SegmentationModel):
    """UNet decoder on an encoder of torchvision, with bottleneck block and skips back to full resolution.

    The encoder has no features at full resolution. With the decoder `plain` the skip there is the normalised image
    itself, with `stem` 32 features of its own, as UNet has them, and the last step of the decoder has 32 channels.
    Where an encoder begins at a stride of 4, the skip at 2 is made from that at full resolution.
    """

    stride = 32
    decoders = ("plain", "stem")
    widths: tuple[int, ...] = (512, 256, 128, 64, 32, 16)  # channels of the decoder, from the bottleneck up

    def build(self, attention: str, decoder: str) -> None:
        self.encoder = build_encoder(self.encoder_name, self.in_channels)
        skip, last = (self.in_channels, self.widths[-1]) if decoder == "plain" else (32, 32)
        with torch.no_grad():
            probed = encode(self.encoder.eval(), torch.zeros(1, self.in_channels, 64, 64))
        widths = {1: skip, 2: skip, **{stride: features.shape[1] for stride, features in probed.items()}}
        channels = [min(self.widths[0], widths[32]), *self.widths[1:-1], last]
        self.stem = nn.Identity() if decoder == "plain" else double_conv(self.in_channels, skip)
        self.bottleneck = double_conv(widths[32], channels[0])
        self.self_attention = SELF_ATTENTION[attention](channels[0])
        steps = zip(channels, STRIDES, channels[1:])
        self.ups = nn.ModuleList(UpBlock(a, widths[stride], b, attention) for a, stride, b in steps)
        self.head = nn.Conv2d(last, self.task.out_channels, 1)
        self.train()
        for part in (self.stem, self.bottleneck, self.ups, self.head):
            init_weights(part)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        features = {1: self.stem(x), **encode(self.encoder, x)}
        if 2 not in features:
            features[2] = F.avg_pool2d(features[1], 2)
        x = self.self_attention(self.bottleneck(features[32]))
        for up, stride in zip(self.ups, STRIDES):
            x = up(x, features[stride])
        return self.head(x)


class LiteUNet(EncoderUNet):
    """A narrow UNet decoder on EfficientNet-Lite."""

    normalization = LITE_NORMALIZATION
    widths = (112, 80, 56, 40, 24, 16)
