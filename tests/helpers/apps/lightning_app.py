"""An application of Lightning, whose module learns one weight and logs what the configuration says."""

from pathlib import Path
from typing import Any

import hydra
import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from mnist_sweep.integrations.lightning import ReportToSweep


class Module(LightningModule):
    def __init__(self, score: float) -> None:
        super().__init__()
        self.weight, self.score = torch.nn.Parameter(torch.zeros(())), score

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight * batch - 1).square().mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("score", self.score * (self.current_epoch + 1), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="lightning")
def task(cfg: DictConfig) -> float:
    devices = 2 if cfg.strategy == "ddp_fork" else 1
    trainer = make_trainer(strategy=cfg.strategy, devices=devices, max_epochs=4)
    trainer.fit(Module(cfg.x), data(), data())
    return float(trainer.callback_metrics["score"])


def make_trainer(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[ReportToSweep()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def data() -> DataLoader[torch.Tensor]:
    return DataLoader(torch.ones(4, 1))


if __name__ == "__main__":
    from tests.helpers.apps.lightning_app import task as by_name  # workers find it by its name

    by_name()
