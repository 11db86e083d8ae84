"""The model, the images and the trainer that the benchmarks time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from mnist_sweep.config import CONF_DIR
from mnist_sweep.data.dataset import Dataset, Split, load_dataset
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training.device import pick_device
from mnist_sweep.training.run import build_model, build_trainer
from mnist_sweep.training.trainer import Trainer

BATCH_SIZE = 64  # the default in conf/
N_IMAGES = {"simple": 6400, "deeper": 3200, "vgg": 640}  # of a timed epoch


def compose(overrides: Sequence[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF_DIR)):
        return hydra.compose("config", list(overrides))


def overrides_of(model: str, *, quick: bool) -> list[str]:
    """Overrides that train `model` on N_IMAGES images; if `quick`, on a tenth, from the embedded data."""
    n_images = N_IMAGES[model] // (10 if quick else 1)
    data = ["data=mnist5k"] if quick else []
    return [f"model={model}", *data, f"data.train_size={n_images}", "data.val_size=500"]


def build(overrides: Sequence[str]) -> tuple[DictConfig, Dataset, nn.Module]:
    """Build the configuration, the data and the model on the best device. No early stopping."""
    cfg = compose(["trainer.early_stopping.patience=null", *overrides])
    torch.manual_seed(cfg.seed)
    data = load_dataset(cfg.data).to(pick_device(cfg.device))
    return cfg, data, build_model(cfg.model, data)


def build_our_trainer(overrides: Sequence[str], directory: Path) -> tuple[Trainer, Dataset]:
    cfg, data, model = build(overrides)
    return build_trainer(cfg, model, data, directory), data


def our_trainer(overrides: Sequence[str], directory: Path) -> Callable[[], float]:
    """A function that trains one more epoch with this project's trainer and returns images/s."""
    trainer, _ = build_our_trainer(overrides, directory)
    trainer.settings.max_epochs = 0

    def train_epoch() -> float:
        trainer.settings.max_epochs += 1
        return trainer.fit(Tracker(), Trial()).history[-1]["images_per_s"]

    return train_epoch


class TorchvisionImages(MNIST):  # type: ignore[misc]
    """torchvision's MNIST dataset with the images of a split, without reading its files."""

    def __init__(self, split: Split) -> None:
        self.data, self.targets = split.images[:, 0].cpu(), split.labels.cpu()
        self.transform, self.target_transform = ToTensor(), None


def data_loader(split: Split, batch_size: int, *, shuffle: bool = True) -> "DataLoader[Any]":
    return DataLoader(TorchvisionImages(split), batch_size, shuffle=shuffle)
