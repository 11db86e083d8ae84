"""The same net and images by Lightning: images/s of the last of two epochs. Run where it is installed."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from mnist_sweep.benchmark.training import BATCH_SIZE, build, write_idx

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(lightning.LightningModule):  # type: ignore[misc, no-any-unimported]
    def __init__(self, model: torch.nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.seconds = 0.0

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, _index: int) -> None:
        images, labels = batch
        self.log("val_accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)

    def on_train_epoch_start(self) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self) -> None:
        self.seconds = time.monotonic() - self.started


def main(model: str, n_images: str, folder: str) -> None:
    _, data, net = build([f"model={model}", f"data.train_size={n_images}", "data.val_size=500"])
    raw = Path(folder) / "MNIST" / "raw"
    if not raw.exists():
        write_idx(data, raw)
    loader = DataLoader(MNIST(folder, transform=ToTensor()), batch_size=BATCH_SIZE, shuffle=True)
    module = Module(net)
    lightning.Trainer(max_epochs=2, **QUIET).fit(module, loader)
    print(len(data.train) / module.seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
