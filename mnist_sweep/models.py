"""Networks: images [N, C, H, W] float32 in 0..1 -> logits [N, n_classes]."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnist_sweep.architecture import CNNConfig
from mnist_sweep.common.errors import UserError, did_you_mean


class CNN(nn.Sequential):
    """Stages of convolutions with a pool at the end of each, hidden linear layers, and the logits.

    Args:
        in_shape: (C, H, W) of an image.
        n_classes: number of logits.
        settings: the fields of an `architecture.CNNConfig`.

    Raises:
        UserError: the sizes leave no pixel, or the activation is not a class of torch.nn.
        TypeError: CNNConfig has no such field.
    """

    def __init__(self, *, in_shape: tuple[int, int, int], n_classes: int, **settings: Any) -> None:
        cfg = CNNConfig(**settings)
        activation = _activation(cfg.activation)
        layers: list[nn.Module] = []
        channels, *size = in_shape
        for stage in cfg.stages:
            for multiple in stage:
                width = multiple * cfg.nf
                layers.append(
                    nn.Conv2d(channels, width, cfg.kernel_size, padding=cfg.padding, bias=cfg.bias)
                )
                channels = width
                if cfg.padding == "valid":
                    size = [s - cfg.kernel_size + 1 for s in size]
                if cfg.batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                if cfg.activate == "conv":
                    layers.append(activation())
            if cfg.activate == "stage":
                layers.append(activation())
            if cfg.pool == "max":
                layers.append(nn.MaxPool2d(2))
                size = [s // 2 for s in size]
        if min(size) < 1:
            raise UserError(
                f"model.stages={[list(s) for s in cfg.stages]} with kernel_size={cfg.kernel_size}, "
                f"padding={cfg.padding} and pool={cfg.pool} leaves nothing of "
                f"{in_shape[1]}x{in_shape[2]} pixels"
            )
        layers.append(nn.Flatten())
        features = channels * size[0] * size[1]
        for width in cfg.head:
            layers += [nn.Linear(features, width), activation()]
            if cfg.dropout:
                layers.append(nn.Dropout(cfg.dropout))
            features = width
        layers.append(nn.Linear(features, n_classes, bias=cfg.bias))
        if cfg.logits_batch_norm:
            layers.append(nn.BatchNorm1d(n_classes))
        super().__init__(*layers)
        self.features = (size[0], size[1])  # height and width at the Flatten

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits [N, n_classes] of images [N, C, H, W].

        In training each pool runs before the ReLU in front of it. The function and the gradient are
        the same, but ReLU has a quarter of the numbers, which saves `simple` a seventh of its time.
        The feature maps of smaller images (progressive resizing) are pooled to the size that the
        linear layers need.
        """
        layers = list(self)
        if self.training:
            for i in range(1, len(layers)):
                if isinstance(layers[i - 1], nn.ReLU) and isinstance(layers[i], nn.MaxPool2d):
                    layers[i - 1], layers[i] = layers[i], layers[i - 1]
        for layer in layers:
            if isinstance(layer, nn.Flatten) and images.shape[2:] != self.features:
                images = F.adaptive_avg_pool2d(images, self.features)
            images = layer(images)
        return images


class Normalize(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Sequential):
    """A network behind its normalisation, so that a saved model takes plain pixels in 0..1."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.net = net


class Mixture(nn.Module):
    """Averages several models: the softmax of its logits is the weighted mean of theirs."""

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.models, self.weights, strict=True)
        mean = torch.stack([weight * model(images).softmax(1) for model, weight in pairs]).sum(0)
        return mean.clamp_min(1e-12).log()


def n_parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())


def first_layer(model: nn.Module, in_shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """Return the weights [n, C, H, W] of the layer that sees the pixels, or None without such a layer."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == in_shape[0]:
            return module.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]
        if isinstance(module, nn.Linear) and module.in_features == math.prod(in_shape):
            weight = module.weight.detach().float().cpu()
            return weight.reshape(-1, *in_shape).numpy()  # type: ignore[no-any-return]
    return None


def summary(model: nn.Module, in_shape: tuple[int, int, int]) -> list[tuple[str, str, int]]:
    """Return (name, output shape without the batch, parameters) of every layer, in forward order."""
    rows: list[tuple[str, str, int]] = []

    def add_row(module: nn.Module, _inputs: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output  # the sequence of an LSTM
        shape = "x".join(map(str, first.shape[1:]))
        rows.append((type(module).__name__, shape, n_parameters(module)))

    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(add_row) for leaf in leaves]
    training = model.training
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model.eval()(torch.zeros(1, *in_shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return rows


def check_logits(model: nn.Module, in_shape: tuple[int, int, int], n_classes: int) -> None:
    """Raise UserError if a network does not map images [N, C, H, W] to logits [N, n_classes]."""
    training = model.training
    name, images = type(model).__name__, [2, *in_shape]
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(images))
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"model: {name} cannot process images {images}: {reason}") from error
    finally:
        model.train(training)
    shape = list(getattr(output, "shape", ()))
    if shape != [2, n_classes]:
        raise UserError(
            f"model: {name} gives {shape} for 2 images, expected logits {[2, n_classes]}"
        )


def can_train_on_one_image(model: nn.Module, in_shape: tuple[int, int, int]) -> bool:
    """Return whether a batch may have one image. Batch norm has no variance over a single number."""
    model = copy.deepcopy(
        model
    ).eval()  # without dropout, which would draw from the run's generator
    for module in model.modules():
        module.training = isinstance(module, _BatchNorm)
    try:
        model(torch.zeros(1, *in_shape, device=next(model.parameters()).device))
    except ValueError:
        return False
    return True


def _activation(name: str) -> type[nn.Module]:
    cls = getattr(nn, name, None)
    if isinstance(cls, type) and issubclass(cls, nn.Module):
        return cls
    hint = did_you_mean(name, dir(nn.modules.activation))
    raise UserError(
        f"model.activation={name}: torch.nn has no such class{hint}; for example ReLU, GELU, SiLU, "
        "ELU or Tanh"
    )
