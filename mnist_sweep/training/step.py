"""The forward and backward pass of one batch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mnist_sweep.data.augment import Augment
from mnist_sweep.data.dataset import to_float
from mnist_sweep.training.config import TrainerConfig


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
        self.model = model
        if settings.compile:
            torch.compiler.reset()  # of a worker's earlier models: past eight it compiles no more
        self.forward = torch.compile(model) if settings.compile else model
        # whether training mode changes what a pass sees, or what it leaves behind
        self.has_modes = any(isinstance(m, _BatchNorm | _DropoutNd) for m in model.modules())

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, H, W] uint8, labels [B] -> mean loss, number of right answers, both unread.

        `scale` makes the images' height and width smaller.
        """
        images = to_float(images)
        if self.augment is not None:
            images = self.augment(images, self.generator)
        if scale < 1:
            size = resized(images.shape[2:], scale)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if self.settings.skip_easiest == 0:
            return self._learn(images, labels)
        losses, n_right = self._judge(images, labels)
        n_kept = len(images) - round(self.settings.skip_easiest * len(images))
        hardest = losses.topk(max(n_kept, min(2, len(images)))).indices
        self._learn(images[hardest], labels[hardest])
        return losses.mean(), n_right

    @torch.no_grad()
    def _judge(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each image [B], the number of right answers; batch norm learns nothing of it."""
        self.model.train(not self.has_modes)
        with self._autocast():
            logits = torch.cat(
                [self.forward(x) for x in images.tensor_split(self._n_parts(images))]
            )
            losses = self._loss(logits, labels, "none")
        self.model.train()
        return losses, _n_right(logits, labels)

    def _n_parts(self, images: torch.Tensor) -> int:
        """None is of one image, which has no variance for batch norm."""
        size = self.settings.micro_batch_size or len(images)
        return max(1, min(math.ceil(len(images) / size), len(images) // 2))

    def _learn(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n_parts = self._n_parts(images)
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
        dtype = self.autocast_dtype
        return torch.autocast(self.generator.device.type, dtype, enabled=dtype is not None)


def resized(sides: Sequence[int], scale: float) -> list[int]:
    """Height and width of images of progressive resizing, in pixels."""
    return [round(scale * side) for side in sides]


def _n_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.detach().argmax(1) == labels).sum()
