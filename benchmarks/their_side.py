"""What the peers run, where they are installed; its arguments: lightning|stock|ray, their own."""

import logging
import os
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.training import BATCH_SIZE, build, loader_of

DEFAULTS = {"tracking_uri": "", "max_epochs": 1, "n_images": 1, "lr": 1e-3, "batch_size": 64}


def small(n_images: int) -> Any:
    """(data, net) of the search; two jobs share the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    return build(["model=simple", "data=mnist5k", f"data.train_size={n_images}"])[1:]


def by_lightning(net: torch.nn.Module, epochs: int, lr: float, *loaders: Any) -> Any:
    """(seconds of the last epoch, validation included if there is any; the last metrics)."""
    import lightning

    class Module(lightning.LightningModule):  # type: ignore[misc, no-any-unimported]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _index: int) -> None:
            self.log("val_accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr)

        def on_train_epoch_start(self) -> None:
            self.started = time.monotonic()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.monotonic() - self.started

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, fitter = Module(), lightning.Trainer(max_epochs=epochs, **dict.fromkeys(quiet, False))
    fitter.fit(module, *loaders)
    return module.seconds, fitter.callback_metrics


def stock(cfg: Any) -> float:
    """A trial of Hydra's own Optuna sweeper: of all epochs, it cannot end one early."""
    import mlflow
    from hydra.core.global_hydra import GlobalHydra

    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment("stock")
    mlflow.pytorch.autolog()
    GlobalHydra.instance().clear()  # `build` composes our configuration
    data, net = small(cfg.n_images)
    train = loader_of(data.train, cfg.batch_size)
    val = loader_of(data.val, cfg.batch_size, shuffle=False)
    return float(by_lightning(net, cfg.max_epochs, cfg.lr, train, val)[1]["val_accuracy"])


def train(config: dict[str, Any]) -> None:
    """A trial of Ray's: the loop that everybody writes."""
    from ray import tune

    data, net = small(config["n_images"])
    optimizer = torch.optim.Adam(net.parameters(), config["lr"])
    train = loader_of(data.train, config["batch_size"])
    val = loader_of(data.val, config["batch_size"], shuffle=False)
    for _ in range(config["max_epochs"]):
        net.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            right = sum((net(images).argmax(1) == labels).sum().item() for images, labels in val)
        tune.report({"val_accuracy": right / len(data.val)})


def by_ray(store: str, n_trials: int, max_epochs: int, n_images: int) -> float:
    """The best validation accuracy of a search with ASHA and Ray's MLflow callback."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler

    tracked = MLflowLoggerCallback(f"sqlite:///{store}/ray.db", experiment_name="ray")
    space = {"lr": tune.loguniform(1e-4, 1e-1), "batch_size": tune.choice([32, 64])}
    goal: dict[str, Any] = {"metric": "val_accuracy", "mode": "max"}
    asha = ASHAScheduler(max_t=max_epochs)
    found = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={**space, "max_epochs": max_epochs, "n_images": n_images},
        tune_config=tune.TuneConfig(
            num_samples=n_trials, max_concurrent_trials=2, scheduler=asha, **goal
        ),
        run_config=tune.RunConfig(storage_path=store, callbacks=[tracked], verbose=0),
    ).fit()
    ray.shutdown()  # its workers print to our output, whose last line is the result
    return float((found.get_best_result(**goal, scope="all").metrics or {})["val_accuracy"])


def main() -> None:
    peer = sys.argv.pop(1)
    if peer == "stock":
        import hydra
        from hydra.core.config_store import ConfigStore

        ConfigStore.instance().store("stock", DEFAULTS)
        hydra.main(version_base=None, config_name="stock")(stock)()
    elif peer == "lightning":
        _, data, net = build(sys.argv[1:])
        seconds, _ = by_lightning(net, 2, 1e-3, loader_of(data.train, BATCH_SIZE))
        print(len(data.train) / seconds)
    else:
        print(by_ray(sys.argv[1], *map(int, sys.argv[2:])))
