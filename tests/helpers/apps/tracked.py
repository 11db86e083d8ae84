"""An application of somebody else, which logs to MLflow in its own way."""

import time
from pathlib import Path

import hydra
import mlflow
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from sklearn.linear_model import LogisticRegression


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="tracked")
def task(cfg: DictConfig) -> float:
    for step in (1, 2):
        mlflow.log_metric("own", step * cfg.x, step=step)
    while cfg.wait_for and not Path(cfg.wait_for).exists():
        Path(f"{cfg.wait_for}.waiting").touch()
        time.sleep(0.05)
    directory = Path(HydraConfig.get().runtime.output_dir)
    (directory / "plots").mkdir()
    for name in ("metrics.csv", "weights.bin", "plots/curve.png"):
        (directory / name).write_text("content")
    if cfg.x == 13:
        raise ValueError("the task raised")
    if cfg.autolog:
        mlflow.autolog(log_models=False, silent=True)
        LogisticRegression(C=0.5).fit(np.arange(8.0)[:, None], np.arange(8) > 3)
    return float(2 * cfg.x)


if __name__ == "__main__":
    from tests.helpers.apps.tracked import task as by_name  # workers find it by its module's name

    by_name()
