"""The networks: layers, sizes, and what is computed about them."""

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.common.errors import UserError
from tests.helpers.configs import composed


def build_net(name: str, *overrides: str) -> nn.Module:
    cfg = composed(f"model={name}", *overrides).model
    net: nn.Module = build(cfg, in_shape=(1, 28, 28), n_classes=10)
    return net


def conv(a: int, b: int) -> int:
    return 9 * a * b + b


def linear(a: int, b: int) -> int:
    return a * b + b


C, B, A, P = "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"


@pytest.mark.parametrize(
    ("name", "layers", "n_parameters"),
    [
        (
            "simple",
            [C, A, P, C, A, P, "Flatten", "Linear", A, "Linear"],
            conv(1, 32) + conv(32, 64) + linear(64 * 7 * 7, 128) + linear(128, 10),
        ),
        (
            "deeper",
            [C, C, A, P, C, C, A, P, "Flatten", "Linear", A, "Linear"],
            conv(1, 32)
            + conv(32, 32)
            + conv(32, 64)
            + conv(64, 64)
            + linear(64 * 7 * 7, 256)
            + linear(256, 10),
        ),
        (
            "vgg",
            [
                *(C, B, A, C, B, A, P) * 2,
                *(C, B, A, C, B, A, C, B, A, P),
                *("Flatten", "Linear", A, "Dropout", "Linear"),
            ],
            # every batch norm has two parameters a channel
            conv(1, 64)
            + conv(64, 64)
            + conv(64, 128)
            + conv(128, 128)
            + conv(128, 256)
            + 2 * conv(256, 256)
            + 2 * (64 + 64 + 128 + 128 + 3 * 256)
            + linear(256 * 3 * 3, 512)
            + linear(512, 10),
        ),
    ],
)
def test_reference_model_has_its_layers_and_size(
    name: str, layers: list[str], n_parameters: int
) -> None:
    net = build_net(name)
    assert [type(layer).__name__ for layer in net.children()] == layers
    assert models.n_parameters(net) == n_parameters
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_cnn_takes_colour_and_other_sizes() -> None:
    net = models.CNN(in_shape=(3, 21, 32), n_classes=4, stages=[[5], [6, 7]], head=[])
    assert net(torch.rand(2, 3, 21, 32)).shape == (2, 4)


def test_cnn_without_stages_is_an_mlp() -> None:
    net = build_net("simple", "model.stages=[]", "model.head=[100]")
    assert models.n_parameters(net) == linear(784, 100) + linear(100, 10)


def test_cnn_without_padding_shrinks() -> None:
    net = build_net("simple", "model.padding=valid")  # 26, 13, 11, 5
    assert models.n_parameters(net) == (
        conv(1, 32) + conv(32, 64) + linear(64 * 5 * 5, 128) + linear(128, 10)
    )


def test_cnn_refuses_sizes_that_leave_no_pixel() -> None:
    with pytest.raises(UserError, match="leaves nothing of 28x28"):
        build_net("simple", "model.stages=[[1],[1],[1],[1],[1]]")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": [[1]]}, "unexpected keyword argument 'stage'"),
        ({"padding": "full"}, "padding"),
        ({"activation": "Relu"}, "did you mean 'ReLU'"),
    ],
)
def test_cnn_of_a_wrong_configuration_is_a_user_error(
    settings: dict[str, object], message: str
) -> None:
    node = OmegaConf.create({"_target_": "mnist_sweep.models.CNN", "stages": [[4]], **settings})
    with pytest.raises(UserError, match=message):
        build(node, in_shape=(1, 28, 28), n_classes=10)


def test_cnn_builds_from_a_recorded_configuration() -> None:
    recorded = OmegaConf.create(OmegaConf.to_yaml(composed("model=vgg").model))
    net = build(recorded, in_shape=(1, 28, 28), n_classes=10)
    assert repr(net) == repr(build_net("vgg"))


def test_classifier_normalises_pixels() -> None:
    model = models.Classifier(nn.Identity(), mean=[0.25, 0.5], std=[0.5, 2.0])
    out = model(torch.full((1, 2, 1, 1), 0.75))
    assert out.flatten().tolist() == [1.0, 0.125]


def test_summary_lists_each_layer_and_does_not_change_the_model() -> None:
    model = models.Classifier(build_net("vgg"), [0.1], [0.3]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = models.summary(model, (1, 28, 28))
    assert rows[1] == ("Conv2d", "64x28x28", conv(1, 64))
    assert rows[-1] == ("Linear", "10", linear(512, 10))
    assert sum(n for _, _, n in rows) == models.n_parameters(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("side", "is_enough"), [(28, False), (64, True)])
def test_one_image_is_enough_if_batch_norm_sees_several_pixels(side: int, is_enough: bool) -> None:
    net = torchvision.models.resnet18()  # its last stage has a 32nd of the side
    assert models.can_train_on_one_image(net, (3, side, side)) is is_enough
    assert net.training  # the model itself is unchanged
    assert net.bn1.num_batches_tracked == 0


def test_summary_supports_layers_with_several_outputs() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.logits = nn.LSTM(28, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.logits(self.lstm(images[:, 0])[0][:, -1])
            return logits

    rows = models.summary(Rows(), (1, 28, 28))
    assert [row[:2] for row in rows] == [("LSTM", "28x16"), ("Linear", "10")]


def test_mixture_is_the_weighted_mean_of_probabilities() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    images = torch.rand(5, 1, 2, 2)
    expected = 0.75 * members[0](images).softmax(1) + 0.25 * members[1](images).softmax(1)
    mixture = models.Mixture(members, [3, 1])
    assert torch.allclose(mixture(images).softmax(1), expected, atol=1e-6)
