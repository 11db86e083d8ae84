"""The report of a sweep: `python -m mnist_sweep.report sweep=<name|latest>`."""

import logging
from pathlib import Path

import optuna
from omegaconf import DictConfig

from mnist_sweep import app
from mnist_sweep.common.errors import UserError, did_you_mean, without_password
from mnist_sweep.report import page
from mnist_sweep.sweep import results
from mnist_sweep.sweep import study as storage
from mnist_sweep.tracking import run as tracking

log = logging.getLogger("mnist_sweep.report")  # not __main__, of which Hydra shows nothing


def report(cfg: DictConfig) -> None:
    study = load_study(storage.storage_url(cfg.storage, cfg.store), cfg.sweep)
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store) if cfg.tracking.enabled else None
    folder = Path(results.About.of(study).directory) / "report"
    path = page.write(folder, study, uri=uri, experiment=cfg.tracking.experiment)
    log.info("report of sweep %s: %s", study.study_name, path)


def load_study(url: str, name: str) -> optuna.Study:
    """The study of this name, or of `latest` the one whose trials began last.

    Raises:
        UserError: there is none, or it is not of a sweep of ours.
    """
    path = storage.sqlite_path(url)
    if path is not None and not path.exists():
        raise UserError(
            f"{path} is not there: no sweep ran yet; python -m mnist_sweep -m makes one"
        )
    opened = storage.open_storage(url, 60)
    summaries = optuna.get_all_study_summaries(opened, include_best_trial=False)
    begun = [s for s in summaries if s.datetime_start is not None]
    names = [s.study_name for s in sorted(begun, key=lambda s: s.datetime_start)]  # type: ignore[arg-type, return-value]
    if not names:
        raise UserError(
            f"{without_password(url)} holds no sweep yet; python -m mnist_sweep -m makes one"
        )
    wanted = names[-1] if name == "latest" else name
    if wanted not in names:
        raise UserError(
            f"sweep={name}: no such sweep{did_you_mean(name, names)}; the last is {names[-1]}"
        )
    study = optuna.load_study(study_name=wanted, storage=opened)
    if results.ABOUT not in study.user_attrs:
        raise UserError(
            f"sweep={name}: a study that mnist_sweep did not make, or an earlier version"
        )
    return study


def main() -> None:
    app.tool("report", report)


if __name__ == "__main__":
    main()
