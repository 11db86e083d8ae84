"""The programs that the benchmarks compare this project with, as their users would write them.

`plain_loop` and `train_mnist_fast` run in the process of the benchmark. The others run from `main`
in a virtual environment that has their framework, with the arguments: lightning|stock|ray, its own.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.workload import BATCH_SIZE, build, data_loader
from mnist_sweep.data.dataset import Dataset

STOCK_CONFIG = {"tracking_uri": "", "max_epochs": 1, "n_images": 1, "lr": 1e-3, "batch_size": 64}


def build_for_peer(overrides: Sequence[str]) -> tuple[Dataset, nn.Module]:
    """Build the data and the model, which has PyTorch's default memory format."""
    _, data, model = build(overrides)
    return data, model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def plain_loop(overrides: Sequence[str]) -> Callable[[], float]:
    """The usual PyTorch loop: torchvision's dataset, DataLoader, Adam.

    Returns:
        A function that trains one more epoch of the model in `overrides` and returns images/s.
    """
    data, model = build_for_peer(overrides)
    loader = data_loader(data.train, BATCH_SIZE)
    device, optimizer = data.train.images.device, Adam(model.parameters())

    def train_epoch() -> float:
        started, total = time.monotonic(), 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
        return len(data.train) / (time.monotonic() - started)

    return train_epoch


def train_mnist_fast(seed: int, data: Dataset) -> tuple[float, float]:
    """The recipe of tuomaso/train_mnist_fast: one epoch over float tensors, normalised beforehand.

    Returns:
        Seconds of training and test, and the test accuracy in 0..1.
    """
    batch_size, learning_rate = 256, 0.01
    torch.manual_seed(seed)
    device = data.train.images.device
    images, test_images = (
        (split.images.float() / 255 - data.mean[0]) / data.std[0]
        for split in (data.train, data.test)
    )
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    ).to(device)
    optimizer = Adam(model.parameters(), lr=learning_rate, betas=(0.7, 0.9))
    batches = torch.randperm(len(images), device=device).split(batch_size)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=len(batches), cycle_momentum=False)
    started = time.monotonic()
    for indices in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), data.train.labels[indices]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in test_images.split(2000)])
    accuracy = (predicted == data.test.labels).float().mean().item()
    return time.monotonic() - started, accuracy


def build_search_trial(n_images: int) -> tuple[Dataset, nn.Module]:
    """Build (data, model) of a trial of the search. Two trials share the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    return build_for_peer(["model=simple", "data=mnist5k", f"data.train_size={n_images}"])


def fit_with_lightning(model: nn.Module, epochs: int, lr: float, *loaders: Any) -> Any:
    """Train with Lightning.

    Returns:
        Seconds of the last epoch, including validation if there is any, and the last metrics.
    """
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc, no-any-unimported]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, _index: int) -> None:
            correct = self.model(batch[0]).argmax(1) == batch[1]
            self.log("val_accuracy", correct.float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr)

        def on_train_epoch_start(self) -> None:
            self.started = time.monotonic()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.monotonic() - self.started

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, trainer = Module(), lightning.Trainer(max_epochs=epochs, **dict.fromkeys(quiet, False))
    trainer.fit(module, *loaders)
    return module.seconds, trainer.callback_metrics


def stock_sweeper_trial(cfg: Any) -> float:
    """A trial of Hydra's own Optuna sweeper. It trains all epochs, because it cannot be pruned."""
    import mlflow
    from hydra.core.global_hydra import GlobalHydra

    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment("stock")
    mlflow.pytorch.autolog()
    GlobalHydra.instance().clear()  # `build` composes our configuration
    data, model = build_search_trial(cfg.n_images)
    train = data_loader(data.train, cfg.batch_size)
    val = data_loader(data.val, cfg.batch_size, shuffle=False)
    return float(fit_with_lightning(model, cfg.max_epochs, cfg.lr, train, val)[1]["val_accuracy"])


def ray_trial(config: dict[str, Any]) -> None:
    """A trial of Ray Tune: the usual PyTorch loop."""
    from ray import tune

    data, model = build_search_trial(config["n_images"])
    optimizer = torch.optim.Adam(model.parameters(), config["lr"])
    train = data_loader(data.train, config["batch_size"])
    val = data_loader(data.val, config["batch_size"], shuffle=False)
    for _ in range(config["max_epochs"]):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            correct = sum(
                (model(images).argmax(1) == labels).sum().item() for images, labels in val
            )
        tune.report({"val_accuracy": correct / len(data.val)})


def search_with_ray(store: str, n_trials: int, max_epochs: int, n_images: int) -> float:
    """Search with ASHA and Ray's MLflow callback. Return the best validation accuracy."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    tracker = MLflowLoggerCallback(f"sqlite:///{store}/ray.db", experiment_name="ray")
    space = {"lr": tune.loguniform(1e-4, 1e-1), "batch_size": tune.choice([32, 64])}
    objective: dict[str, Any] = {"metric": "val_accuracy", "mode": "max"}
    asha = ASHAScheduler(max_t=max_epochs)
    results = tune.Tuner(
        tune.with_resources(ray_trial, {"cpu": 1}),
        param_space={**space, "max_epochs": max_epochs, "n_images": n_images},
        tune_config=tune.TuneConfig(
            num_samples=n_trials, max_concurrent_trials=2, scheduler=asha, **objective
        ),
        run_config=tune.RunConfig(storage_path=store, callbacks=[tracker], verbose=0),
    ).fit()
    ray.shutdown()  # its workers print to our output, and the last line must be the result
    return float((results.get_best_result(**objective, scope="all").metrics or {})["val_accuracy"])


def main() -> None:
    peer = sys.argv.pop(1)
    if peer == "stock":
        import hydra
        from hydra.core.config_store import ConfigStore

        ConfigStore.instance().store("stock", STOCK_CONFIG)
        hydra.main(version_base=None, config_name="stock")(stock_sweeper_trial)()
    elif peer == "lightning":
        data, model = build_for_peer(sys.argv[1:])
        seconds, _ = fit_with_lightning(model, 2, 1e-3, data_loader(data.train, BATCH_SIZE))
        print(len(data.train) / seconds)
    else:
        print(search_with_ray(sys.argv[1], *map(int, sys.argv[2:])))
