"""Data augmentation on the device."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf

# images [N, C, H, W] float32 in 0..1 -> the same, with draws from the generator
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def build_augment(cfg: DictConfig) -> Augment | None:
    """The augmentation that the node `data` of a configuration asks for."""
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
    """Each image [N, C, H, W] rotated, scaled and shifted by its own uniform draw, on its device."""
    n, _, height, width = images.shape
    draw = torch.rand(4, n, generator=generator, device=images.device) * 2 - 1
    angle = draw[0] * math.radians(degrees)
    zoom = 1 / (1 + draw[1] * scale)
    # grid_sample's coordinates run from -1 to 1 over the width
    shift_x, shift_y = draw[2] * 2 * shift_px / width, draw[3] * 2 * shift_px / height
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
