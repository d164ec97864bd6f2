"""A detector's backbone at work: in the fit, and on what a sampler made; as fast as the settings allow.

The backbone's arithmetic is ``networks.speed.Evaluation``; the layer after it, and the loss, are float32
always: a threshold lies between logits, and seven bits of mantissa would round it onto them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentprint.detector.model import three_channels
from latentprint.networks.speed import Evaluation, arithmetic, compiled, laid_out, new_step


def learning(network: nn.Module, how: Evaluation) -> nn.Module:
    """The backbone of ``network`` (laid out so from now on) as it learns: compiled where ``how`` says so."""
    if how.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    body = network.backbone
    assert isinstance(body, nn.Module)
    return compiled(body, how)


def seen_by(body: nn.Module, images: Tensor, how: Evaluation) -> Tensor:
    """Features (B, d) float32 of images (B, C, H, W), by a backbone or what ``learning`` made of it."""
    with arithmetic(how, images.device):
        new_step(how)
        return body(laid_out(three_channels(images), how)).float()
