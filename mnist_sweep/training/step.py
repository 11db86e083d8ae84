"""One training step: forward and backward pass, gradient clipping, optimizer, average of the weights."""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from mnist_sweep.data.augment import Augment
from mnist_sweep.data.dataset import Split, to_float
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.cuda_graph import CudaGraph, GraphedStep
from mnist_sweep.training.ema import ExponentialMovingAverage

log = logging.getLogger(__name__)


class TrainingStep:
    """Takes optimizer steps on batches of a split. A step does not wait for the device.

    Args:
        model: images [B, C, H, W] float32 in 0..1 -> logits [B, n_classes].
        optimizer: of the model's parameters.
        split: the training images, on the device of the model.
        augment: changes the images of every batch; None: nothing does.
        autocast_dtype: dtype of the forward pass; None: float32.
        seed: seeds `generator`, from which the augmentation and the order of the batches are drawn.

    Attributes:
        eval_model: the model to validate and to keep. It has the averaged weights, if the settings
            ask for an average.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        split: Split,
        settings: TrainerConfig,
        *,
        augment: Augment | None,
        autocast_dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.split = model, optimizer, split
        self.settings, self.augment = settings, augment
        device = split.images.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.autocast = torch.autocast(
            device.type, autocast_dtype, enabled=autocast_dtype is not None
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype is torch.float16)
        self.average: ExponentialMovingAverage | None = None
        if settings.ema_decay is not None:
            self.average = ExponentialMovingAverage(model, settings.ema_decay)
        self.eval_model = model if self.average is None else self.average.model
        if settings.compile:
            # forget the models of earlier trials: torch compiles at most eight variants
            torch.compiler.reset()
        self.forward = torch.compile(model) if settings.compile else model
        # whether a pass in training mode computes something else, or changes the model
        self.has_modes = any(isinstance(m, _BatchNorm | _DropoutNd) for m in model.modules())
        self.graphed: GraphedStep | None = None
        if settings.cuda_graphs and self.scaler.is_enabled():
            log.info("no CUDA graph: with fp16 the host decides whether to apply a step")
        elif settings.cuda_graphs and device.type == "cuda":
            self.graphed = GraphedStep(optimizer, CudaGraph(self.generator))

    def __call__(
        self, indices: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step on the images at `indices`.

        Args:
            indices: [B] int64.
            scale: factor of the images' height and width, at most 1.

        Returns:
            The batch's mean losses [2], with and without label smoothing, and the number of correct
            predictions, both on the device.
        """
        if self.graphed is None:
            losses, n_correct = self._update(indices, scale)
        else:
            losses, n_correct = self.graphed(self._update, indices, scale)
        if self.average is not None:
            self.average.update(self.model)
        return losses, n_correct

    def _update(self, indices: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the part of a step that a CUDA graph can hold."""
        settings = self.settings
        self.optimizer.zero_grad(set_to_none=True)
        images, labels = to_float(self.split.images[indices]), self.split.labels[indices]
        if self.augment is not None:
            images = self.augment(images, self.generator)
        if scale < 1:
            size = scaled_size(images.shape[2:], scale)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        if settings.skip_easiest == 0:
            losses, n_correct = self._backward(images, labels, self._n_micro_batches(len(images)))
        else:
            of_images, n_correct = self._losses(images, labels, self._n_micro_batches(len(images)))
            n_kept = len(images) - round(settings.skip_easiest * len(images))
            hardest = of_images[0].topk(max(n_kept, min(2, len(images)))).indices
            n_micro_batches = self._n_micro_batches(len(hardest))
            self._backward(images[hardest], labels[hardest], n_micro_batches)
            losses = of_images.mean(1)
        if settings.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses, n_correct

    def _n_micro_batches(self, n_images: int) -> int:
        """Number of micro-batches. Each has at least two images, because batch norm needs a variance."""
        size = self.settings.micro_batch_size or n_images
        return max(1, min(math.ceil(n_images / size), n_images // 2))

    def _backward(
        self, images: torch.Tensor, labels: torch.Tensor, n_micro_batches: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradient of the mean loss to the parameters; return as `__call__` does."""
        losses, n_correct = [], []
        micro_batches = images.tensor_split(n_micro_batches), labels.tensor_split(n_micro_batches)
        for x, y in zip(*micro_batches, strict=True):
            with self.autocast:
                logits = self.forward(x)
                both = self._cross_entropy(logits, y, "mean") * (len(x) / len(images))
            self.scaler.scale(both[0]).backward()
            losses.append(both.detach())
            n_correct.append((logits.detach().argmax(1) == y).sum())
        return torch.stack(losses).sum(0), torch.stack(n_correct).sum()

    @torch.no_grad()
    def _losses(
        self, images: torch.Tensor, labels: torch.Tensor, n_micro_batches: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of each image [2, B] and the number of correct predictions.

        This pass does not update the statistics of batch norm.
        """
        self.model.train(not self.has_modes)
        with self.autocast:
            logits = torch.cat([self.forward(x) for x in images.tensor_split(n_micro_batches)])
            losses = self._cross_entropy(logits, labels, "none")
        self.model.train()
        return losses, (logits.argmax(1) == labels).sum()

    def _cross_entropy(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str
    ) -> torch.Tensor:
        """Return the loss with and without label smoothing, [2] or [2, B]; the first has a gradient."""
        smoothing = self.settings.label_smoothing
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)
        plain = loss.detach()
        if smoothing:
            plain = F.cross_entropy(logits.detach(), labels, reduction=reduction)
        return torch.stack([loss, plain])


def scaled_size(size: Sequence[int], scale: float) -> list[int]:
    """Return the height and width of images in progressive resizing, in pixels."""
    return [round(scale * side) for side in size]
