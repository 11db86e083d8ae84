"""A task that trains nothing: the time of its trials is the cost of the sweep engine.

It waits for `trainer.max_minutes`, if that is set.
"""

import time

import hydra
from omegaconf import DictConfig

from mnist_sweep.config import CONF_DIR
from mnist_sweep.sweep import current_trial


@hydra.main(config_path=str(CONF_DIR), config_name="config")
def idle(cfg: DictConfig) -> float:
    trial = current_trial()
    time.sleep(60 * (cfg.trainer.max_minutes or 0))
    trial.report(1, {cfg.objective: 0.0})
    trial.finish({cfg.objective: 0.0, "fit_s": 0.0})
    return 0.0


if __name__ == "__main__":
    idle()
