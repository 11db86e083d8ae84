"""Images a second of our trainer, against the loop that everybody writes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks.measure import Row, compose, medians
from mnist_sweep.data.dataset import Dataset, Split, load_dataset, to_float
from mnist_sweep.training.device import autocast_dtype, pick_device
from mnist_sweep.training.reporting import Reporter, Tracker
from mnist_sweep.training.run import build_model, build_trainer
from mnist_sweep.training.trainer import Trainer

BATCH_SIZE = 64  # conf/'s own
IMAGES = {"simple": 6400, "deeper": 3200, "vgg": 640}  # of a turn
PEAK_MODEL = "vgg"  # whose time is nearly all arithmetic
BARS: dict[str, dict[str, tuple[float | None, ...]]] = {  # fp32, as it is, with CUDA graphs
    "cpu": {"simple": (1.7, 2.2, None), "deeper": (1.3, 1.3, None), "vgg": (1.05, 1.15, None)},
    "cuda": {"simple": (None, None, 40), "deeper": (None, None, None), "vgg": (None, None, 10)},
}
SHARE_OF_PEAK = {"cpu": 0.9, "cuda": 0.35}


def training(folder: Path, *, quick: bool) -> Iterator[Row]:
    kind = pick_device("auto").type
    for model, bars in BARS.get(kind, BARS["cpu"]).items():
        overrides = small(model, quick=quick)
        turns: dict[str, Callable[[], float]] = {
            "fp32": trainer([*overrides, "trainer.precision=fp32"], folder / model / "fp32"),
            "peer": plain_loop(overrides),
            "auto": trainer(overrides, folder / model / "auto"),
        }
        if kind == "cuda":
            graphs = [*overrides, "trainer.cuda_graphs=true"]
            turns["graphs"] = trainer(graphs, folder / model / "graphs")
        if model == PEAK_MODEL:
            turns |= {
                "fp32 product": product(torch.float32),
                "bf16 product": product(torch.bfloat16),
            }
        speed = medians(turns, 1 if quick else 5)
        what, unit = f"training {model}, batch {BATCH_SIZE}", "images/s"
        sides = {"fp32": ", ours in fp32", "auto": "", "graphs": ", ours with CUDA graphs"}
        for (side, name), bar in zip(sides.items(), bars, strict=True):
            if side in speed:
                yield Row(what + name, unit, speed[side], speed["peer"], bar, "at least")
        if model == PEAK_MODEL:
            yield from share_of_peak(overrides, speed)


def small(model: str, *, quick: bool) -> list[str]:
    n_images = IMAGES[model] // (10 if quick else 1)
    return [f"model={model}", f"data.train_size={n_images}", "data.val_size=500"]


def share_of_peak(overrides: Sequence[str], speed: Mapping[str, float]) -> Iterator[Row]:
    """Floating-point operations a second of training, against those of a large matrix product."""
    cfg, data, model = build(overrides)
    device = data.train.images.device
    as_it_is = autocast_dtype(cfg.trainer.precision, device) or torch.float32
    with FlopCounterMode(display=False) as counter:  # forward and backward
        model(to_float(data.train.images[:2])).sum().backward()
    per_image = counter.get_total_flops() / 2 / 1e9
    for key, dtype in {"auto": as_it_is, "fp32": torch.float32}.items():
        name = "bf16" if dtype is torch.bfloat16 else "fp32"
        what = f"training {PEAK_MODEL} in {name}, against a matrix product"
        reached, peer = per_image * speed[key], speed[f"{name} product"]
        yield Row(what, "GFLOP/s", reached, peer, SHARE_OF_PEAK.get(device.type), "at least")


def product(dtype: torch.dtype) -> Callable[[], float]:
    """GFLOP/s of the vendor's library on square matrices."""
    device = pick_device("auto")
    size = 8192 if device.type == "cuda" else 2048
    factors = torch.randn(2, size, size, device=device, dtype=dtype)

    def turn() -> float:
        started = time.monotonic()
        for _ in range(10):
            result = factors[0] @ factors[1]
        result[0, 0].item()  # waits for the device
        return 10 * 2 * size**3 / (time.monotonic() - started) / 1e9

    return turn


def trainer(overrides: Sequence[str], directory: Path) -> Callable[[], float]:
    """One more epoch of the real Trainer at every call: images/s."""
    ours, _ = ready(overrides, directory)
    ours.settings.max_epochs = 0

    def turn() -> float:
        ours.settings.max_epochs += 1
        return ours.fit(Tracker(), Reporter()).history[-1]["images_per_s"]

    return turn


def ready(overrides: Sequence[str], directory: Path) -> tuple[Trainer, Dataset]:
    cfg, data, model = build(overrides)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return build_trainer(cfg, model, data, directory), data


def plain_loop(overrides: Sequence[str]) -> Callable[[], float]:
    """One more epoch of the same net on the same images by torchvision, DataLoader and Adam."""
    _, data, model = build(overrides)
    loader = loader_of(data.train, BATCH_SIZE)
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
    cfg = compose(["trainer.early_stopping.patience=null", *overrides])
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    data = load_dataset(cfg.data).to(device)
    return cfg, data, build_model(cfg.model, data).to(device)


class Images(MNIST):  # type: ignore[misc]
    """torchvision's dataset over images that we hold, without its files."""

    def __init__(self, split: Split) -> None:
        self.data, self.targets = split.images[:, 0].cpu(), split.labels.cpu()
        self.transform, self.target_transform = ToTensor(), None


def loader_of(split: Split, batch_size: int, *, shuffle: bool = True) -> "DataLoader[object]":
    return DataLoader(Images(split), batch_size, shuffle=shuffle)
