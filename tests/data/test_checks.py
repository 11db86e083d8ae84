"""Each check of a dataset finds its fault."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mnist_sweep.data.checks import check_dataset
from mnist_sweep.data.config import ExpectedConfig
from mnist_sweep.data.dataset import Split, split_arrays
from mnist_sweep.data.sources import Arrays

EXPECTED = ExpectedConfig(train=60, test=20, shape=(1, 6, 6))


def sound():
    """Return a dataset without a fault."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 1, 6, 6), dtype=np.uint8)
    labels = np.arange(80) % 4
    arrays = Arrays(images[:60], labels[:60], images[60:], labels[60:])
    return split_arrays(arrays, name="toy", val_size=12, split_seed=0)


def failed(data, expected=EXPECTED):
    """Return the names of the checks that fail."""
    checks = check_dataset(data, OmegaConf.structured(expected))
    return [check.name for check in checks if not check.passed]


def test_sound_dataset_passes():
    assert failed(sound()) == []
    assert failed(sound(), ExpectedConfig()) == []


def with_test(data, **changes):
    return replace(data, test=replace(data.test, **changes))


def with_duplicate(data):
    images = data.test.images.clone()
    images[3] = data.train.images[7]
    return with_test(data, images=images)


def with_blank_image(data):
    images = data.test.images.clone()
    images[3] = 9
    return with_test(data, images=images)


def with_fewer_images(data):
    return replace(data, test=Split(data.test.images[:16], data.test.labels[:16], np.arange(16)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (with_duplicate, ["duplicates between splits"]),
        (with_blank_image, ["blank images"]),
        (with_fewer_images, ["counts"]),
        (lambda d: replace(d, classes=d.classes[:3]), ["labels"]),
        (lambda d: with_test(d, images=d.test.images[:, :, :5]), ["shapes"]),
        (lambda d: with_test(d, images=d.test.images.to(torch.int32)), ["dtypes"]),
        (lambda d: with_test(d, labels=d.test.labels.clamp(max=2)), ["classes present"]),
        (lambda d: with_test(d, labels=torch.tensor([0] * 17 + [1, 2, 3])), ["class balance"]),
    ],
)
def test_faulty_dataset_fails_the_check(change, names):
    assert failed(change(sound())) == names
