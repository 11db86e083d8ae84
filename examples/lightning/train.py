"""Classify scikit-learn's handwritten digits with Lightning. The configuration names the callback."""

import hydra
import lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(lightning.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        dataset = TensorDataset(images, torch.tensor(data.target))
        generator = torch.Generator().manual_seed(0)
        self.train, self.validation = random_split(dataset, [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.validation, 512)


class Classifier(lightning.LightningModule):
    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(1, width, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * width, 10),
        )

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[torch.Tensor], _index: int) -> None:
        images, labels = batch
        accuracy = (self.network(images).argmax(1) == labels).float().mean()
        self.log("val/accuracy", accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@hydra.main(config_path=".", config_name="config", execution_whitelist=["mnist_sweep.*"])
def main(cfg: DictConfig) -> float:
    lightning.seed_everything(cfg.seed, verbose=False)
    callbacks = instantiate(cfg.callbacks, _execution_whitelist_=["mnist_sweep.*"])
    trainer = lightning.Trainer(**cfg.trainer, callbacks=list(callbacks.values()))
    trainer.fit(Classifier(**cfg.model), Digits(**cfg.data))
    return float(trainer.callback_metrics["val/accuracy"])


if __name__ == "__main__":
    main()
