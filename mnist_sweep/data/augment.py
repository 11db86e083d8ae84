"""Data augmentation on the device."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf

# (images [N, C, H, W] float32 in 0..1, random generator) -> augmented images of the same shape
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def build_augment(cfg: DictConfig) -> Augment | None:
    """Return the augmentation selected by `augment` in a DataConfig, or None for "none"."""
    if cfg.augment == "none":
        return None
    strength: Any = OmegaConf.to_container(cfg.affine)
    return lambda images, generator: affine(images, generator=generator, **strength)


def affine(
    images: torch.Tensor,
    *,
    degrees: float,
    scale: float,
    shift_px: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Rotate, scale and shift each image at random, independently of the others.

    Args:
        images: [N, C, H, W] float32.
        degrees: rotation is uniform in -degrees..degrees.
        scale: size is uniform in 1-scale..1+scale.
        shift_px: horizontal and vertical shift are uniform in -shift_px..shift_px pixels.
        generator: random generator on the device of `images`.

    Returns:
        Images [N, C, H, W]. Pixels from outside the original image are 0.
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
    return F.grid_sample(images, grid, align_corners=False)
