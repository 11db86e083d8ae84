"""Images a second of our trainer, against the loop that everybody writes."""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from mnist_sweep.benchmark.measure import Row, Sizes, compose, medians
from mnist_sweep.data import Dataset
from mnist_sweep.device import pick_device
from mnist_sweep.reporting import NullReporter
from mnist_sweep.train import build_model, build_trainer, load_data
from mnist_sweep.trainer import NullTracker

BATCH_SIZE = 64
BARS = {"simple": (1.7, 2.2), "deeper": (1.3, 1.3), "vgg": (1.05, 1.15)}  # fp32, as it is


def training(sizes: Sizes, folder: Path) -> Iterator[Row]:
    for model, n_images in sizes.images.items():
        overrides = [f"model={model}", f"data.train_size={n_images}", "data.val_size=500"]
        turns = {
            "fp32": trainer([*overrides, "trainer.precision=fp32"], folder / model / "fp32"),
            "peer": plain_loop(overrides, folder / model / "data"),
            "auto": trainer(overrides, folder / model / "auto"),
        }
        speed = medians(turns, sizes.turns)
        what, unit = f"training {model}, batch {BATCH_SIZE}", "images/s"
        fp32, as_it_is = BARS[model]
        yield Row(what, unit, speed["auto"], speed["peer"], as_it_is, "at least")
        yield Row(f"{what}, ours in fp32", unit, speed["fp32"], speed["peer"], fp32, "at least")


def trainer(overrides: Sequence[str], directory: Path) -> Callable[[], float]:
    """One more epoch of the real Trainer at every call: images/s."""
    cfg, data, model = build(overrides)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = build_trainer(cfg, model, data, directory)
    ours.settings.max_epochs = 0

    def turn() -> float:
        ours.settings.max_epochs += 1
        return ours.fit(NullTracker(), NullReporter()).history[-1]["images_per_s"]

    return turn


def plain_loop(overrides: Sequence[str], folder: Path) -> Callable[[], float]:
    """One more epoch of the same net on the same images by torchvision, DataLoader and Adam."""
    _, data, model = build(overrides)
    write_idx(data, folder / "MNIST" / "raw")
    images_on_disk = MNIST(str(folder), transform=ToTensor())
    loader = DataLoader(images_on_disk, batch_size=BATCH_SIZE, shuffle=True)
    device, optimizer = data.train.images.device, Adam(model.parameters())

    def turn() -> float:
        started, total = time.monotonic(), 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        return len(data.train) / (time.monotonic() - started)

    return turn


def build(overrides: Sequence[str]) -> tuple[DictConfig, Dataset, nn.Module]:
    fixed = [f"data.batch_size={BATCH_SIZE}", "trainer.early_stopping.patience=null"]
    cfg = compose([*fixed, *overrides])
    device = pick_device(cfg.device)
    torch.manual_seed(0)
    data = load_data(cfg.data).to(device)
    return cfg, data, build_model(cfg.model, data).to(device)


def write_idx(data: Dataset, folder: Path) -> None:
    """Our training images as the four unpacked files that torchvision reads."""
    images, labels = data.train.images.cpu().numpy(), data.train.labels.cpu().numpy()
    content = {
        "images-idx3-ubyte": struct.pack(">4I", 0x803, len(images), 28, 28) + images.tobytes(),
        "labels-idx1-ubyte": struct.pack(">2I", 0x801, len(labels)) + labels.astype("u1").tobytes(),
    }
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, written in content.items():
            (folder / f"{part}-{name}").write_bytes(written)
