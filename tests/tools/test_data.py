"""The checks of a dataset find what is wrong with it, and the command ends with 1 and its name."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mnist_sweep.config import ExpectedConfig
from mnist_sweep.data.dataset import Split, split_arrays
from mnist_sweep.data.sources import Arrays
from mnist_sweep.tools import data as inspect_data

EXPECTED = ExpectedConfig(train=60, test=20, shape=(1, 6, 6))


def sound():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 1, 6, 6), dtype=np.uint8)
    labels = np.arange(80) % 4
    arrays = Arrays(images[:60], labels[:60], images[60:], labels[60:])
    return split_arrays(arrays, name="toy", val_size=12, split_seed=0)


def failed(data, expected=EXPECTED):
    return [
        c.name for c in inspect_data.inspect(data, OmegaConf.structured(expected)) if not c.passed
    ]


def test_inspect_passes_a_sound_dataset():
    assert failed(sound()) == []
    assert failed(sound(), ExpectedConfig()) == []


def with_test(data, **changes):
    return replace(data, test=replace(data.test, **changes))


def copied(data):
    images = data.test.images.clone()
    images[3] = data.train.images[7]
    return with_test(data, images=images)


def blanked(data):
    images = data.test.images.clone()
    images[3] = 9
    return with_test(data, images=images)


def cut(data):
    return replace(data, test=Split(data.test.images[:16], data.test.labels[:16], np.arange(16)))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (copied, ["duplicates between splits"]),
        (blanked, ["blank images"]),
        (cut, ["counts"]),
        (lambda d: replace(d, classes=d.classes[:3]), ["labels"]),
        (lambda d: with_test(d, images=d.test.images[:, :, :5]), ["shapes"]),
        (lambda d: with_test(d, images=d.test.images.to(torch.int32)), ["dtypes"]),
        (lambda d: with_test(d, labels=d.test.labels.clamp(max=2)), ["classes present"]),
        (lambda d: with_test(d, labels=torch.tensor([0] * 17 + [1, 2, 3])), ["class balance"]),
    ],
)
def test_inspect_names_the_fault(change, names):
    assert failed(change(sound())) == names


def test_command_ends_with_1_and_leaves_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for i in range(20):
            pixels = (
                np.zeros((9, 9), np.uint8) if i == 4 else rng.integers(0, 256, (9, 9), np.uint8)
            )
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    command = [sys.executable, "-m", "mnist_sweep.data", "data=folder", "data.val_size=8", "seed=1"]
    places = [f"data.root={tmp_path / 'images'}", f"store={tmp_path / 'store'}", "tracking=none"]
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "failed: blank images" in done.stdout
    pictures = {path.name for path in tmp_path.glob("store/outputs/*/*/*.png")}
    assert pictures == {"class_distribution.png", "samples.png", "samples_augmented.png"}
