"""An application of the sweep engine that trains nothing: it needs neither torch nor mlflow."""

import os
import resource
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_sweep.sweep import current_trial


@hydra.main(config_path=str(Path(__file__).parent / "conf"), config_name="config")
def task(cfg: DictConfig) -> float | None:
    note(cfg, "start")
    trial = current_trial()
    done = 0 if trial.resume_from is None else int((trial.resume_from / "epoch").read_text())
    for epoch in range(done + 1, cfg.epochs + 1):
        time.sleep(cfg.sleep_s)
        if trial.report(epoch, {"y": cfg.x}):
            break
        if cfg.save:
            saved = Path(HydraConfig.get().runtime.output_dir) / "epoch"
            saved.with_suffix(".new").write_text(str(epoch))
            saved.with_suffix(".new").rename(saved)
    if cfg.act == "raise":
        raise ValueError("the task raised")
    if cfg.act == "hang":
        time.sleep(1000)
    if cfg.act == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))
        try:
            bytearray(2**32)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    if cfg.act == "orphan" and os.fork() == 0:  # the child stays
        time.sleep(1000)
    if cfg.act in ("die", "orphan"):
        os.kill(os.getpid(), 9)
    if cfg.act == "exit":
        sys.exit(1)
    note(cfg, "end")
    return float("nan") if cfg.act == "not_finite" else float(cfg.x)


def note(cfg: DictConfig, event: str) -> None:
    if cfg.events:
        with open(cfg.events, "a") as events:
            gpu, threads = map(os.environ.get, ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
            imported = ",".join({"optuna", "sqlalchemy"} & sys.modules.keys())
            line = f"{event} x={cfg.x} pid={os.getpid()} gpu={gpu} threads={threads}"
            numpy = sys.modules.get("numpy")
            drawn = None if numpy is None else numpy.random.random()
            events.write(f"{line} drawn={drawn} imported={imported}\n")


if __name__ == "__main__":
    from tests.helpers.apps.sleeper import task as by_name  # workers find it by its module's name

    by_name()
