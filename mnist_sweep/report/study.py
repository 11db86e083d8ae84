"""Loads the study that a report is about."""

import optuna

from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.sweep import results
from mnist_sweep.sweep.study import check_name, open_storage, sqlite_path

SWEEP = "python -m mnist_sweep -m runs one"


def load_study(url: str, name: str) -> optuna.Study:
    """Load the study of a sweep; `latest` is the sweep that started last.

    Raises:
        UserError: there is no such study, or it does not belong to a sweep of mnist_sweep.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise UserError(f"{path} does not exist: no sweep ran yet; {SWEEP}")
    storage = open_storage(url, 60)
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    started = [s for s in summaries if s.datetime_start is not None]
    names = [s.study_name for s in sorted(started, key=lambda s: s.datetime_start)]  # type: ignore[arg-type, return-value]
    if not names:
        raise UserError(f"{mask_url(url)} contains no sweep; {SWEEP}")
    chosen = names[-1] if name == "latest" else name
    if chosen not in names:
        raise UserError(
            f"sweep={name}: no such sweep{did_you_mean(name, names)}; the last is {names[-1]}"
        )
    check_name(chosen)  # it names the folder of the report, and others may write to the database
    study = optuna.load_study(study_name=chosen, storage=storage)
    results.About.of(study)
    return study
