"""Data augmentation on the device."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.data.dataset import Dataset

# (images [N, C, H, W] float32 in 0..1, random generator) -> augmented images of the same shape
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def build_augment(cfg: DictConfig, data: Dataset) -> Augment | None:
    """Return the augmentation of `data` selected by `augment` in a DataConfig, or None for "none"."""
    if cfg.augment == "none":
        return None
    strength: Any = OmegaConf.to_container(cfg.affine)
    strength["background"] = background_of(data)
    return lambda images, generator: affine(images, generator=generator, **strength)


def background_of(data: Dataset) -> torch.Tensor | None:
    """Return `data.background` as [C, 1, 1] on the device of the images, or None if it is black."""
    if not any(data.background):
        return None
    return torch.tensor(data.background, device=data.train.images.device)[:, None, None]


def affine(
    images: torch.Tensor,
    *,
    degrees: float,
    scale: float,
    shift_px: float,
    background: torch.Tensor | None = None,
    generator: torch.Generator,
) -> torch.Tensor:
    """Rotate, scale and shift each image at random, independently of the others.

    Args:
        images: [N, C, H, W] float32.
        degrees: rotation is uniform in -degrees..degrees.
        scale: size is uniform in 1-scale..1+scale.
        shift_px: horizontal and vertical shift are uniform in -shift_px..shift_px pixels.
        background: value of the pixels from outside the original image, [C, 1, 1]; None: 0.
        generator: random generator on the device of `images`.

    Returns:
        Images [N, C, H, W].
    """
    n, _, height, width = images.shape
    draw = torch.rand(4, n, generator=generator, device=images.device) * 2 - 1  # [4, N] in -1..1
    angle = draw[0] * math.radians(degrees)
    zoom = 1 / (1 + draw[1] * scale)
    # grid_sample measures an image as 2 wide and 2 high
    shift_x, shift_y = draw[2] * 2 * shift_px / width, draw[3] * 2 * shift_px / height
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    if background is None:
        return F.grid_sample(images, grid, align_corners=False)
    # grid_sample pads with 0
    return F.grid_sample(images - background, grid, align_corners=False) + background
