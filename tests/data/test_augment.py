"""Random affine augmentation."""

import torch

from mnist_sweep.data import augment
from mnist_sweep.data.dataset import load_dataset, to_float
from tests.helpers.configs import composed


def affine(images: torch.Tensor, seed: int = 0, **changes: object) -> torch.Tensor:
    strength = {"degrees": 0.0, "scale": 0.0, "shift_px": 0.0, **changes}
    return augment.affine(images, generator=torch.Generator().manual_seed(seed), **strength)


def test_affine_of_zero_strength_changes_nothing() -> None:
    images = torch.rand(4, 1, 28, 28)
    assert torch.allclose(affine(images), images, atol=1e-5)


def test_affine_changes_each_image_differently_and_reproducibly() -> None:
    images = torch.rand(1, 1, 28, 28).repeat(8, 1, 1, 1)
    out = affine(images, degrees=10, scale=0.1, shift_px=2)
    assert out.shape == images.shape
    assert all(not torch.equal(out[0], other) for other in out[1:])
    assert torch.equal(out, affine(images, degrees=10, scale=0.1, shift_px=2))
    assert not torch.equal(out, affine(images, seed=1, degrees=10, scale=0.1, shift_px=2))


def test_affine_shifts_by_at_most_shift_px() -> None:
    dot = torch.zeros(200, 1, 29, 29)
    dot[:, :, 14, 14] = 1
    out = affine(dot, shift_px=3)
    rows, columns = torch.meshgrid(torch.arange(29.0), torch.arange(29.0), indexing="ij")
    mass = out.sum((1, 2, 3))
    moved = torch.stack([(out * axis).sum((1, 2, 3)) / mass - 14 for axis in (rows, columns)])
    assert 2.5 < moved.abs().max() <= 3.001
    assert moved.mean().abs() < 0.3


def test_affine_pads_with_the_background() -> None:
    paper = torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    images = paper.expand(50, 3, 28, 28).clone()
    out = affine(images, degrees=30, scale=0.3, shift_px=4, background=paper)
    assert torch.allclose(out, images, atol=1e-6)
    assert affine(images, shift_px=4)[:, 0].amin() == 0  # without a background it pads with black


def test_augmentation_of_a_black_background_is_that_of_earlier_versions() -> None:
    cfg = composed("data=mnist5k", "data.augment=affine").data
    data = load_dataset(cfg)
    images = to_float(data.train.images[:100])
    augmented = augment.build_augment(cfg, data)(images, torch.Generator().manual_seed(0))
    assert torch.equal(augmented, affine(images, **cfg.affine))


def test_affine_rotates_about_the_centre_by_at_most_degrees() -> None:
    bar = torch.zeros(200, 1, 29, 29)
    bar[:, :, 14, 14:] = 1  # from the centre to the right edge: an angle of 0 degrees
    out = affine(bar, degrees=20)
    rows, columns = torch.meshgrid(torch.arange(29.0), torch.arange(29.0), indexing="ij")
    angle = torch.atan2((out * (rows - 14)).sum((1, 2, 3)), (out * (columns - 14)).sum((1, 2, 3)))
    degrees = angle.rad2deg().abs().max()
    assert 17 < degrees <= 20.5
