"""An application that keeps its configuration beside its code, as many Hydra scripts do."""

import hydra
from omegaconf import DictConfig

from mnist_sweep.sweep import current_trial


@hydra.main(config_path=".", config_name="plain")
def task(cfg: DictConfig) -> float:
    trial = current_trial()
    for step in range(1, 4):
        if trial.report(step, {"score": step * cfg.x}, final=step == 3):
            break
    trial.finish({"number": trial.number, **trial.params})
    return float(3 * cfg.x)


if __name__ == "__main__":
    task()
