"""The forward and backward pass of one batch."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mnist_sweep.config import TrainerConfig
from mnist_sweep.data import to_float

# images [N, C, H, W] float32 in 0..1 -> the same, with draws from the generator
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class Backward:
    """Adds the gradient of a batch's mean loss to the parameters of `model`; waits for no device.

    Args:
        scaler: of the loss, for gradients that fp16 would lose.
        generator: what `augment` draws from; its device is that of all.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainerConfig,
        *,
        augment: Augment | None,
        autocast_dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
        generator: torch.Generator,
    ) -> None:
        self.settings, self.augment, self.generator = settings, augment, generator
        self.autocast_dtype, self.scaler = autocast_dtype, scaler
        # a small net on a GPU waits for the launches of its kernels; a CUDA graph makes them one
        mode = "reduce-overhead" if generator.device.type == "cuda" else None
        self.forward = torch.compile(model, mode=mode) if settings.compile else model
        self.scale = 1.0  # of the images' height and width

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, H, W] uint8, labels [B] -> mean loss, number of right answers, both unread."""
        images = to_float(images)
        if self.augment is not None:
            images = self.augment(images, self.generator)
        if self.scale < 1:
            size = [round(self.scale * side) for side in images.shape[-2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if self.settings.skip_easiest == 0:
            return self._learn(images, labels)
        with torch.no_grad(), self._autocast():
            logits = self.forward(images)
            losses, n_right = self._loss(logits, labels, "none"), _n_right(logits, labels)
        n_skipped = min(round(self.settings.skip_easiest * len(images)), len(images) - 1)
        hardest = losses.topk(len(images) - n_skipped).indices
        self._learn(images[hardest], labels[hardest])
        return losses.mean(), n_right

    def _learn(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In micro-batches, of equal sizes: none is one image, which has no variance for batch norm."""
        n_parts = math.ceil(len(images) / (self.settings.micro_batch_size or len(images)))
        losses, right = [], []
        for x, y in zip(images.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True):
            with self._autocast():
                logits = self.forward(x)
                loss = self._loss(logits, y) * (len(x) / len(images))
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            right.append(_n_right(logits, y))
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean"
    ) -> torch.Tensor:
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)

    def _autocast(self) -> Any:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.generator.device.type, self.autocast_dtype)


def _n_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == labels).sum()
