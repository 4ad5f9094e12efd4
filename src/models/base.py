"""What all networks share: normalisation inside, any input size, logits out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from models.names import ATTENTION
from models.task import task_of

# Of ImageNet's images per channel (R, G, B) in 0..255, with which torchvision's weights were trained.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class SegmentationModel(nn.Module):
    """Base class: pixels (N, in_channels, H, W) in 0..255 go in, logits (N, out_channels, H, W) come out.

    Mean and standard deviation are buffers, so they travel in the checkpoint. Subclasses implement `build` and `body`.

    Args:
        out_channels: 1 for pet against background, 3 for the classes of a trimap, 0 for the noise in each channel.
        attention: one of ATTENTION: a block at the end of each decoder step, or self-attention behind the bottleneck.
        decoder: one of the network's `decoders`.
        classes: names of the classes, the first of them background; then there are as many channels.
        in_channels: of the images.
    """

    stride: int  # the factor between the input and the deepest feature map
    normalization = (IMAGENET_MEAN, IMAGENET_STD)  # as in the training of the encoder's weights, per channel
    decoders: tuple[str, ...] = ("plain",)
    encoder_name: str | None = None  # of torchvision's model whose weights the part `encoder` takes

    def __init__(
        self,
        out_channels: int = 1,
        attention: str = "none",
        decoder: str = "plain",
        classes: Sequence[str] | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        for part, name, names in (("attention", attention, ATTENTION), ("decoder", decoder, self.decoders)):
            if name not in names:
                raise ValueError(f"no {part} is called {name!r}; there are {', '.join(names)}")
        self.in_channels, self.task = in_channels, task_of(out_channels, classes, in_channels)
        options = {"attention": attention, "decoder": decoder, "in_channels": in_channels}
        self.config = {**self.task.outputs, **options}  # rebuilds the model from a checkpoint
        for name, values in zip(("mean", "std"), self.normalization):
            of_channels = values if in_channels == 3 else [sum(values) / 3] * in_channels
            self.register_buffer(name, torch.tensor(of_channels).view(1, -1, 1, 1))
        self.build(attention, decoder)

    def build(self, attention: str, decoder: str) -> None:
        """Makes the layers, for `self.in_channels` and `self.task.out_channels`."""
        raise NotImplementedError

    def body(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images, H and W multiples of `stride`, to logits (N, out_channels, H, W)."""
        raise NotImplementedError

    def freeze_encoder(self, frozen: bool) -> None:
        """Whether the encoder stays as it is in training: no gradients, batch norms in evaluation mode."""
        self.encoder.requires_grad_(not frozen).train(self.training and not frozen)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, in_channels, H, W), uint8 or floating point, to logits; `self.task` says what they mean."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"expected images of shape (N, {self.in_channels}, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        x = (images - self.mean) / self.std
        bottom, right = -height % self.stride, -width % self.stride  # cropped off the logits
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        return self.body(x)[..., :height, :width]


def init_weights(module: nn.Module) -> None:
    """Kaiming initialisation (He et al., 2015) of every convolution; batch norms begin as torch makes them."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            # In a 2x2 transposed convolution of stride 2 every output pixel sees one input pixel.
            fan = m.in_channels if isinstance(m, nn.ConvTranspose2d) else m.weight[0].numel()
            nn.init.normal_(m.weight, std=(2.0 / fan) ** 0.5)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def fold_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Weights of a convolution of RGB, (O, 3, h, w), to (O, channels, h, w).

    A gray image gives what it gave in RGB. Else channel c gets those of c modulo 3, and the sum stays as large.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)
