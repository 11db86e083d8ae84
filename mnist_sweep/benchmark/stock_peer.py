"""A trial of the search as Hydra's own Optuna sweeper, Lightning and MLflow's autolog run it.

It trains for all of the epochs: that sweeper cannot end one early. Run where Lightning is installed.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import hydra
import lightning
import mlflow
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from mnist_sweep.benchmark.lightning_peer import QUIET, Module
from mnist_sweep.benchmark.training import build


@dataclass
class Config:
    data: str = MISSING  # folder with torchvision's files
    tracking_uri: str = MISSING
    max_epochs: int = MISSING
    lr: float = 1e-3
    batch_size: int = 64


@hydra.main(version_base=None, config_name="stock_peer")
def main(cfg: Any) -> float:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # two jobs share the cores
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment("stock")
    mlflow.pytorch.autolog()
    train, val = (
        DataLoader(MNIST(cfg.data, part, transform=ToTensor()), cfg.batch_size, shuffle=part)
        for part in (True, False)
    )
    GlobalHydra.instance().clear()  # `build` composes our configuration
    _, _, net = build(["model=simple", "data=mnist5k"])
    trainer = lightning.Trainer(max_epochs=cfg.max_epochs, **QUIET)
    trainer.fit(Module(net, cfg.lr), train, val)
    return float(trainer.callback_metrics["val_accuracy"])


if __name__ == "__main__":
    ConfigStore.instance().store("stock_peer", Config)
    main()
