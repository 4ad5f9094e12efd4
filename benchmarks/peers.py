"""The networks and training steps of others, as their own examples write them, to measure ours against."""

from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from models.base import IMAGENET_MEAN, IMAGENET_STD
from models.build import build_model
from models.efficientnet_lite import LITE_NORMALIZATION
from models.task import TASKS
from models.unet import UNet
from models.weights import find_encoder_weights


class JoiningUp(nn.Module):
    """A decoder step as it is usually written: concatenates the features, then convolves."""

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.up, self.conv = ours.up, ours.conv

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class SmpUnet(nn.Module):
    """segmentation_models.pytorch's Unet, normalising inside as its binary example does.

    Args:
        encoder: `resnet34` from scratch, or `timm-tf_efficientnet_lite0` from the ImageNet weights that ours has.
    """

    task = TASKS["binary"]

    def __init__(self, encoder: str = "resnet34"):
        super().__init__()
        self.net = smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if encoder != "resnet34":
            mean, std = LITE_NORMALIZATION
            path, _ = find_encoder_weights("efficientnet_lite0_unet", "imagenet")
            weights = torch.load(path, weights_only=True)  # in the same order under other names
            self.net.encoder.load_state_dict(dict(zip(self.net.encoder.state_dict(), weights.values())))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images - self.mean) / self.std)


def build(name: str) -> nn.Module:
    """`smp`, or one of our networks without what saves time or memory."""
    if name == "smp":
        return SmpUnet()
    model = build_model(name)
    model.ups = nn.ModuleList(JoiningUp(up) for up in model.ups)
    if isinstance(model, UNet):
        model.pool = nn.MaxPool2d(2)
    return model


def plain_step(
    model: nn.Module, device: torch.device, layout=torch.contiguous_format, bf16: bool = False, fused: bool = False
) -> Callable:
    """Forward, cross-entropy, backward, Adam, and the loss fetched at every step, as in tutorials."""
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused or None)

    def step(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(device).float().contiguous(memory_format=layout), masks.to(device).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def smp_step(model: nn.Module, device: torch.device, layout=torch.contiguous_format, bf16: bool = False) -> Callable:
    """segmentation_models.pytorch's binary example: Dice loss, Adam 2e-4, statistics of every batch."""
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)

    def step(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(device).float().contiguous(memory_format=layout), masks.to(device).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = loss_fn(logits.float(), masks)
        smp.metrics.get_stats((logits.sigmoid() > 0.5).long(), masks.long(), mode="binary")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def milesial_step(model: nn.Module, device: torch.device) -> Callable:
    """milesial/Pytorch-UNet's loop: channels last, RMSprop, cross-entropy and Dice, clipped gradients, no AMP."""
    layout = torch.channels_last
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999, foreach=True)
    criterion = nn.BCEWithLogitsLoss()

    def step(images: torch.Tensor, masks: torch.Tensor) -> float:
        images, masks = images.to(device).float().contiguous(memory_format=layout), masks.to(device).float().squeeze(1)
        logits = model(images).squeeze(1)
        share = logits.sigmoid()
        overlap, total = 2 * (share * masks).sum(), share.sum() + masks.sum()
        loss = criterion(logits, masks) + 1 - (overlap + 1e-6) / (total + 1e-6)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
