"""A training run in this process, without Hydra's application."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import OmegaConf

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import EPOCH_METRICS
from mnist_sweep.training.run import train
from tests.helpers.configs import composed

TINY = ["data=mnist5k", "model=mlp", "data.train_size=100", "trainer.max_epochs=2"]


class MemoryTracker(Tracker):
    """Keeps what a run records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tags: dict[str, str] = {}
        self.metrics: dict[int, dict[str, float]] = {}
        self.sizes: Mapping[str, int] = {}
        self.images: dict[str, NDArray[np.uint8]] = {}

    @contextmanager
    def run(self, tags: Mapping[str, str]) -> Iterator[None]:
        self.tags = dict(tags)
        yield

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics[step] = {**self.metrics.get(step, {}), **metrics}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes

    def log_image(self, key: str, image: NDArray[np.uint8]) -> None:
        self.images[key] = image

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        self.folder.mkdir()
        write(self.folder)


class SweepTrial(Trial):
    """A trial of a sweep. It keeps what the run reports, and prunes the run if asked to."""

    number = 0

    def __init__(self, *, prune: bool = False) -> None:
        self.prune = prune
        self.summary: Mapping[str, float] = {}

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        return self.prune

    def finish(self, summary: Mapping[str, float]) -> None:
        self.summary = summary


def test_train_records_the_run_and_returns_the_objective(tmp_path: Path) -> None:
    assert HydraConfig.instance().cfg is None  # train uses no global state of Hydra
    tracker = MemoryTracker(tmp_path / "artifacts")
    objective = train(composed(*TINY), tmp_path / "run", tracker, Trial())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"best.pt", "last.pt"}
    assert tracker.tags.keys() == {"data", "data.sha256", "device"}
    assert tracker.sizes == {"train": 100, "val": 500, "test": 500}
    assert list(tracker.metrics) == [1, 2, 0]
    assert tracker.metrics[1].keys() >= set(EPOCH_METRICS)
    summary = tracker.metrics[0]
    assert summary["best/val/accuracy"] == objective
    assert summary.keys() >= {"best_epoch", "n_parameters", "fit_s", "run_s", "test/accuracy"}


@pytest.mark.parametrize(
    ("trial", "overrides", "some", "others"),
    [
        (Trial(), [], {"learning_curves.png", "mistakes.png"}, set()),
        (SweepTrial(), [], {"learning_curves.png"}, {"mistakes.png", "confusion_matrix.png"}),
        (SweepTrial(), ["tracking.figures=all"], {"mistakes.png"}, set()),
        (Trial(), ["tracking.figures=none"], {"predictions.npz"}, {"learning_curves.png"}),
    ],
)
def test_train_draws_few_figures_in_a_sweep_by_default(
    trial: Trial, overrides: list[str], some: set[str], others: set[str], tmp_path: Path
) -> None:
    tracker = MemoryTracker(tmp_path / "artifacts")
    train(composed(*TINY, *overrides), tmp_path / "run", tracker, trial)
    names = {path.name for path in tracker.folder.iterdir()}
    assert names >= some | {"confusion_matrix.csv"}
    assert not names & others
    assert ("confusion_matrix" in tracker.images) == ("tracking.figures=none" not in overrides)


def test_pruned_run_is_tagged_and_not_tested(tmp_path: Path) -> None:
    tracker, trial = MemoryTracker(tmp_path / "artifacts"), SweepTrial(prune=True)
    objective = train(composed(*TINY), tmp_path / "run", tracker, trial)
    assert tracker.tags["state"] == "pruned"
    assert list(tracker.metrics) == [1, 0]
    assert not tracker.folder.exists()
    assert "test/accuracy" not in trial.summary
    assert trial.summary["val/accuracy"] == trial.summary["best/val/accuracy"] == objective


def test_resume_warns_about_changes_and_refuses_those_of_the_optimizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = composed(*TINY)
    first = tmp_path / "first"
    train(cfg, first, Tracker(), Trial())
    (first / ".hydra").mkdir()
    (first / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    again = [*TINY, f"trainer.resume={first}"]

    train(composed(*again, "tracking.run_name=b"), tmp_path / "same", Tracker(), Trial())
    assert "settings differ" not in caplog.text
    changed = composed(*again, "trainer.grad_clip=1")
    train(changed, tmp_path / "changed", Tracker(), Trial())
    assert "settings differ" in caplog.text
    assert "trainer.grad_clip: None -> 1.0" in caplog.text
    with pytest.raises(UserError, match=r"cannot change: optimizer\.lr: 0\.001 -> 0\.5"):
        train(composed(*again, "optimizer.lr=0.5"), tmp_path / "refused", Tracker(), Trial())


@pytest.mark.parametrize("kind", ["truncated", "foreign", "missing best"])
def test_trial_with_a_broken_checkpoint_starts_over(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, first = composed(*TINY), tmp_path / "first"
    objective = train(cfg, first, Tracker(), Trial())
    last, best = first / checkpoint.LAST, first / checkpoint.BEST
    if kind == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif kind == "foreign":  # of another model, whose optimizer and random state do not fit either
        train(composed(*TINY, "model=compact"), tmp_path / "other", Tracker(), Trial())
        shutil.copy(tmp_path / "other" / checkpoint.LAST, last)
    else:
        best.unlink()
    retry = SweepTrial()
    retry.resume_from = first
    assert train(cfg, tmp_path / "retry", Tracker(), retry) == objective
    assert "trial 0 starts over: " in caplog.text
    assert str(best if kind == "missing best" else first) in caplog.text
    anew = checkpoint.load(tmp_path / "retry" / checkpoint.BEST)["model"]
    train(cfg, tmp_path / "whole", Tracker(), Trial())
    whole = checkpoint.load(tmp_path / "whole" / checkpoint.BEST)["model"]
    assert all(bool((anew[name] == whole[name]).all()) for name in whole)
