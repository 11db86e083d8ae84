"""The worker processes of ProcessLauncher: starts, watches, restarts and ends them."""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from mnist_sweep.common import signals
from mnist_sweep.common.files import make_folder
from mnist_sweep.sweep.hydra_internals import job_error

log = logging.getLogger(__name__)

END_S = 5  # for a worker to release its trial after SIGTERM
SHORT_LIFE_S = 10  # a worker that dies sooner counts towards `restarts`

Job = tuple[HydraContext, TaskFunction, DictConfig]


def run_workers(
    job: Job, job_overrides: Sequence[Sequence[str]], first_index: int, restarts: int
) -> None:
    """Run every worker in its own process until each has ended or died too often."""
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork cannot use CUDA and copies locked threads
    setup_globals()
    payload = cloudpickle.dumps((*job, Singleton.get_state()))
    log_dir = Path(OmegaConf.select(job[2], "hydra.sweep.dir")).resolve() / ".workers"
    make_folder(log_dir)

    def start(slot: int) -> BaseProcess:
        arguments = (payload, list(job_overrides[slot]), first_index + slot, log_dir)
        process = context.Process(target=_run_job, args=arguments, name=f"worker-{slot}")
        process.start()
        started[slot] = time.monotonic()
        return process

    started: dict[int, float] = {}
    failures = dict.fromkeys(range(len(job_overrides)), 0)
    running: dict[int, BaseProcess] = {}
    try:
        for slot in range(len(job_overrides)):
            running[slot] = start(slot)
        while running:
            wait([process.sentinel for process in running.values()])
            for slot, process in [(s, p) for s, p in running.items() if not p.is_alive()]:
                process.join()
                del running[slot]
                if process.exitcode == 0:
                    continue
                lived_s = time.monotonic() - started[slot]
                failures[slot] = failures[slot] + 1 if lived_s < SHORT_LIFE_S else 0
                tail = _tail(log_dir / f"{first_index + slot}.log")
                log.warning("worker %d died (exit code %s)%s", slot, process.exitcode, tail)
                if failures[slot] <= restarts:
                    running[slot] = start(slot)
    except (KeyboardInterrupt, SystemExit):
        # a locked database must not hide the signal
        with signals.ignored(), suppress(Exception):
            job[1].mark_interrupted()  # type: ignore[attr-defined]
        raise
    finally:
        with signals.ignored():  # a second Ctrl-C would leave some of them
            _end(list(running.values()))


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + END_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return f"; the end of {path}:\n  " + "\n  ".join(lines[-3:]) if lines else ""


def _run_job(payload: bytes, overrides: list[str], index: int, log_dir: Path) -> None:
    """In the new process: do what Hydra's launchers do, with the output in a file."""
    with open(log_dir / f"{index}.log", "a", buffering=1) as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    hydra_context, task_function, config, singletons = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(singletons)
    job_config = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id = f"worker-{index}"
        job_config.hydra.job.num = index
    ret = run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=job_config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if (error := job_error(ret)) is not None:
        raise SystemExit(f"{type(error).__name__}: {error}")
