"""The search by Ray Tune with ASHA and its MLflow callback. Run where it is installed."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from mnist_sweep.benchmark.training import build


def train(config: dict[str, Any]) -> None:
    """The loop that everybody writes."""
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    train, val = (
        DataLoader(
            MNIST(config["data"], part, transform=ToTensor()), config["batch_size"], shuffle=part
        )
        for part in (True, False)
    )
    _, _, net = build(["model=simple", "data=mnist5k"])
    optimizer = torch.optim.Adam(net.parameters(), config["lr"])
    for _ in range(config["max_epochs"]):
        net.train()
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            right = sum((net(images).argmax(1) == labels).sum().item() for images, labels in val)
        tune.report({"val_accuracy": right / len(val.dataset)})  # type: ignore[arg-type]


def main(data: str, store: str, n_trials: str, max_epochs: str) -> None:
    """Searches on the images in `data`; the best accuracy goes to STORE/best.json."""
    tracked = MLflowLoggerCallback(f"sqlite:///{store}/mlflow.db", experiment_name="ray")
    space = {
        "lr": tune.loguniform(1e-4, 1e-1),
        "batch_size": tune.choice([32, 64]),
        "max_epochs": int(max_epochs),
        "data": data,
    }
    goal: dict[str, Any] = {"metric": "val_accuracy", "mode": "max"}
    found = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=int(n_trials),
            max_concurrent_trials=2,
            scheduler=ASHAScheduler(max_t=int(max_epochs)),
            **goal,
        ),
        run_config=tune.RunConfig(storage_path=store, callbacks=[tracked], verbose=0),
    ).fit()
    best = found.get_best_result(**goal, scope="all")
    Path(store, "best.json").write_text(json.dumps((best.metrics or {})["val_accuracy"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
