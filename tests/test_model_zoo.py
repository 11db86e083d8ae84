"""Every architecture under conf/model, compared with layers, shapes and counts worked out by hand."""

import pytest
import torch

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.config import CONF_DIR
from tests.helpers.configs import composed

# A 3x3 convolution a -> b with bias has 9ab + b parameters, a linear layer a -> b has ab + b, and a batch
# norm of n channels has 2n. The comments give the spatial sizes.
ZOO = {
    # 28, 14, 7
    "simple": (
        "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ["32x28x28", "32x14x14", "64x14x14", "64x7x7", "3136", "128", "10"],
        320 + 18_496 + (3136 * 128 + 128) + 1290,
    ),
    "deeper": (
        "Conv2d Conv2d ReLU MaxPool2d Conv2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ["32x28x28", "32x14x14", "64x14x14", "64x7x7", "3136", "256", "10"],
        320 + 9248 + 18_496 + 36_928 + (3136 * 256 + 256) + 2570,
    ),
    # 28, 14, 7, 3
    "vgg": (
        " ".join(["Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU MaxPool2d"] * 2)
        + " Conv2d BatchNorm2d ReLU" * 3
        + " MaxPool2d Flatten Linear ReLU Dropout Linear",
        ["64x28x28", "64x14x14", "128x14x14", "128x7x7", "256x7x7", "256x3x3", "2304", "512", "10"],
        (640 + 36_928 + 73_856 + 147_584 + 295_168 + 2 * 590_080)
        + (2 * (2 * 64 + 2 * 128 + 3 * 256))
        + (2304 * 512 + 512)
        + 5130,
    ),
    # 28, 14, 7
    "tiny_vgg": (
        " ".join(["Conv2d ReLU Conv2d ReLU MaxPool2d"] * 2) + " Flatten Linear",
        ["10x28x28", "10x14x14", "10x7x7", "490", "10"],
        100 + 3 * 910 + 4910,
    ),
    # 28, 26, 13, 11, 5
    "wide_fc": (
        "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ["32x26x26", "32x13x13", "64x11x11", "64x5x5", "1600", "4608", "10"],
        320 + 18_496 + (1600 * 4608 + 4608) + 46_090,
    ),
    # 28, 14, 7, 3
    "filters": (
        "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ["32x28x28", "32x14x14", "64x14x14", "64x7x7", "64x3x3", "576", "64", "10"],
        320 + 18_496 + 36_928 + (576 * 64 + 64) + 650,
    ),
    # 28, 26, 13, 11, 5
    "compact": (
        "Conv2d ReLU MaxPool2d Conv2d ReLU MaxPool2d Flatten Linear ReLU Linear",
        ["24x26x26", "24x13x13", "36x11x11", "36x5x5", "900", "128", "10"],
        240 + 7812 + 115_328 + 1290,
    ),
    "mlp": ("Flatten Linear ReLU Linear", ["784", "128", "10"], 100_480 + 1290),
    # 28 - 10 * 2 = 8; without biases a convolution has k*k*a*b weights
    "m3": (
        " ".join(["Conv2d BatchNorm2d ReLU"] * 10) + " Flatten Linear BatchNorm1d",
        [*(f"{32 + 16 * i}x{26 - 2 * i}x{26 - 2 * i}" for i in range(10)), "11264", "10"],
        9
        * (32 + 16**2 * (2 * 3 + 3 * 4 + 4 * 5 + 5 * 6 + 6 * 7 + 7 * 8 + 8 * 9 + 9 * 10 + 10 * 11))
        + 2 * 16 * (2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11)
        + 112_640
        + 20,
    ),
    # 28 - 5 * 4 = 8
    "m5": (
        " ".join(["Conv2d BatchNorm2d ReLU"] * 5) + " Flatten Linear BatchNorm1d",
        ["32x24x24", "64x20x20", "96x16x16", "128x12x12", "160x8x8", "10240", "10"],
        25 * (32 + 32**2 * (1 * 2 + 2 * 3 + 3 * 4 + 4 * 5)) + 2 * 32 * 15 + 102_400 + 20,
    ),
    # 28 - 4 * 6 = 4
    "m7": (
        " ".join(["Conv2d BatchNorm2d ReLU"] * 4) + " Flatten Linear BatchNorm1d",
        ["48x22x22", "96x16x16", "144x10x10", "192x4x4", "3072", "10"],
        49 * (48 + 48**2 * (1 * 2 + 2 * 3 + 3 * 4)) + 2 * 48 * 10 + 30_720 + 20,
    ),
}


def net(*overrides, in_shape=(1, 28, 28), n_classes=10):
    return build(composed(*overrides).model, in_shape=in_shape, n_classes=n_classes)


def test_zoo_lists_every_file():
    assert {path.stem for path in (CONF_DIR / "model").glob("*.yaml")} == set(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_layers_shapes_parameters(name):
    layers, shapes, parameters = ZOO[name]
    rows = models.summary(net(f"model={name}"), (1, 28, 28))
    assert [layer for layer, _, _ in rows] == layers.split()
    seen = [shape for _, shape, _ in rows]
    assert [s for s, before in zip(seen, ["", *seen], strict=False) if s != before] == shapes
    assert sum(n for _, _, n in rows) == parameters


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(("in_shape", "n_classes"), [((3, 32, 32), 10), ((1, 28, 28), 47)])
def test_zoo_accepts_every_data_shape(name, in_shape, n_classes):
    model = net(f"model={name}", in_shape=in_shape, n_classes=n_classes).eval()
    assert model(torch.rand(2, *in_shape)).shape == (2, n_classes)


@pytest.mark.parametrize(
    ("overrides", "layer", "expected"),
    [
        (["model=filters", "model.nf=8"], 0, "Conv2d(1, 8, kernel_size=(3, 3)"),
        (["model=filters", "model.nf=8"], 3, "Conv2d(8, 16, kernel_size=(3, 3)"),
        (["model.stages=[[8],[16],[24]]"], 6, "Conv2d(16, 24, kernel_size=(3, 3)"),
        (["model.head=[64,32]"], 9, "Linear(in_features=64, out_features=32"),
        (["model=compact", "model.kernel_size=5"], 0, "Conv2d(1, 24, kernel_size=(5, 5)"),
        (["model=compact", "model.batch_norm=true"], 1, "BatchNorm2d(24"),
        (["model.dropout=0.25"], 9, "Dropout(p=0.25"),
        (["model.activation=GELU"], 1, "GELU("),
    ],
)
def test_architecture_follows_overrides(overrides, layer, expected):
    assert repr(net(*overrides)[layer]).startswith(expected)
