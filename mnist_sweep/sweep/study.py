"""The study in its database: opened, its dead trials found, their parameters given back."""

import json
import logging
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from mnist_sweep.common import processes
from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.sweep.space import FREE

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats, groups of parameters
warnings.filterwarnings("ignore", "Heartbeat of storage")  # Pulse beats outside Study.optimize

QUEUE_LENGTH = 64  # of a grid's points
LOCK_TIMEOUT_S = 60  # SQLite's own is 5 s, less than a long write of another process may take
FIRST_CONTACTS = 5  # with a new database on a server
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

# User attributes of a trial.
WORKER = "worker"  # processes.process_identity of the process that runs it
INVOCATION = "invocation"  # of the driver that asked for it
REPLACED = "replaced"  # why this FAIL is not of the trial's own making, one of:
STALE, INTERRUPTED, SURPLUS, DUPLICATE = "stale", "interrupted", "surplus", "duplicate"
DEATHS = "deaths"  # how many processes died over these parameters
DIRECTORY = "directory"
RESUME = "resume"  # directory of an earlier attempt that left a checkpoint
ERROR = "error"
SUMMARY = "summary"  # figures of the run
GRID = "grid"  # the point of a grid, as JSON


class ExactStorage(RDBStorage):
    """Hands a queued trial to one worker, and a dead one to one reaper.

    Optuna relies on SELECT ... FOR UPDATE for that, which SQLite ignores: of 60 queued trials,
    4 workers ran 10 twice.
    """

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if self.engine.dialect.name == "sqlite":
            session = self.scoped_session()
            try:
                session.execute(text("BEGIN IMMEDIATE"))  # ended by Optuna's own commit or rollback
            except SQLAlchemyError as error:
                session.close()
                raise StorageInternalError(str(error)) from error
        return super().set_trial_state_values(trial_id, state, values)


def storage_url(url: str | None, store: str) -> str:
    return url or f"sqlite:///{Path(store).resolve()}/optuna.db"


def sqlite_path(url: str) -> Path | None:
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def open_storage(url: str, grace_s: int, *, create: bool = False) -> RDBStorage:
    """An RDBStorage with heartbeats. Raises UserError where the database is not to be had."""
    if url.startswith("journal"):
        raise UserError(
            f"sweep.storage={url}: a journal with a torn last line is unreadable for good; "
            "expected sqlite:///file or postgresql://..."
        )
    arguments = {"timeout": LOCK_TIMEOUT_S} if url.startswith("sqlite") else {}
    try:
        return ExactStorage(
            url,
            engine_kwargs={"connect_args": arguments},
            heartbeat_interval=max(1, grace_s // 4),
            grace_period=grace_s,
            skip_compatibility_check=not create,
            skip_table_creation=not create,
        )
    except ImportError as error:
        raise UserError(
            f"sweep.storage={without_password(url)} needs a database driver that is not installed; "
            "for postgresql://: pip install 'psycopg[binary]'"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        shown = without_password(url)
        raise UserError(f"sweep.storage={shown} cannot be opened: {reason}") from error


def create_study(url: str, grace_s: int, name: str, directions: list[Any]) -> optuna.Study:
    """The study `name`, new or as it was left. Two first contacts at once would spoil an SQLite file."""
    path = sqlite_path(url)
    if path is None:
        storage = _open_on_server(url, grace_s)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
            storage = open_storage(url, grace_s, create=True)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True
    )
    if study.directions != optuna.create_study(directions=directions).directions:
        raise UserError(
            f"the sweep {name} was begun with other objectives; take another sweep.name"
        )
    return study


def _open_on_server(url: str, grace_s: int) -> RDBStorage:
    """Of two that make the tables at once, on hosts with no lock in common, one finds them half made."""
    for _ in range(FIRST_CONTACTS - 1):
        try:
            return open_storage(url, grace_s, create=True)
        except UserError as error:
            if not isinstance(error.__cause__, IntegrityError | ProgrammingError):
                raise
            time.sleep(1)
    return open_storage(url, grace_s, create=True)


def trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states or None)


def own_failure(trial: FrozenTrial) -> bool:
    """FAIL by what the trial did, not by what was done to it."""
    return trial.state is TrialState.FAIL and REPLACED not in trial.user_attrs


def reap(study: optuna.Study, grace_s: int, retries: int) -> None:
    """Give back the RUNNING trials whose process ended, or showed no sign of life for `grace_s`."""
    running = trials(study, TrialState.RUNNING)
    if not running:
        return
    silent = set(study._storage._get_stale_trial_ids(study._study_id))  # type: ignore[attr-defined]
    for trial in running:
        worker = trial.user_attrs.get(WORKER)
        started = trial.datetime_start or datetime.now()
        if worker is None:  # its process ended right after it asked
            dead = (datetime.now() - started).total_seconds() > grace_s
        elif processes.is_here(worker):  # a beat may be late, a process is there or not
            dead = processes.is_dead(worker)
        else:
            dead = trial._trial_id in silent
        if dead:
            count_death(study, trial, retries)


def count_death(study: optuna.Study, trial: FrozenTrial, retries: int) -> None:
    """Give back a trial whose process ended before it did, or FAIL it the (`retries` + 1)th time."""
    deaths = trial.user_attrs.get(DEATHS, 0) + 1
    if deaths > retries:
        fail(study, trial, f"its process died {deaths} times")
    else:
        give_back(study, trial, STALE, {DEATHS: deaths})


def give_back(
    study: optuna.Study, trial: FrozenTrial, why: str, attributes: dict[str, Any] | None = None
) -> None:
    """FAIL this trial as `replaced`, and queue its parameters as a new one with its checkpoint."""
    if not fail(study, trial, why, mark=REPLACED):
        return  # another process was faster, or the trial ended after all
    kept = {k: v for k, v in trial.user_attrs.items() if k in (DEATHS, RESUME, GRID)}
    directory = trial.user_attrs.get(DIRECTORY)
    if directory and (Path(directory) / "last.pt").exists():
        kept[RESUME] = directory
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**kept, **(attributes or {})},
            system_attrs={k: v for k, v in trial.system_attrs.items() if k == "fixed_params"},
        )
    )
    log.info("trial %d is %s: its parameters go back to the queue", trial.number, why)


def fail(study: optuna.Study, trial: FrozenTrial, why: str, mark: str = ERROR) -> bool:
    """FAIL a trial that is not finished, saying why; False where it was finished already."""
    with suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, mark, why)
        return study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return False


def of_points(found: Iterable[FrozenTrial], keys: Collection[str]) -> dict[str, FrozenTrial]:
    """The trial that counts for each point of a grid: the finished one, else the latest."""
    counting: dict[str, FrozenTrial] = {}
    for trial in found:
        key = trial.user_attrs.get(GRID, "")
        surplus = trial.user_attrs.get(REPLACED) == SURPLUS
        done = key in counting and counting[key].state in DONE
        if key in keys and not surplus and not done:
            counting[key] = trial
    return counting


def enqueue_grid(
    study: optuna.Study,
    points: Mapping[str, dict[str, Any]],
    failed_before: Collection[int],
    lock: Path,
) -> None:
    """Queue the next points of a grid that have no trial, or one that failed in an earlier call.

    A few at a time: Optuna reads every queued trial anew at each look. Under a file lock, for
    workers that come at once would queue the same points; where it is not shared, a worker finds
    out (`Worker._is_surplus`).
    """
    with FileLock(lock, timeout=LOCK_TIMEOUT_S):
        found = trials(study)
        counting = of_points(found, points)
        room = QUEUE_LENGTH if not count(found, TrialState.WAITING) else 0
        for key, point in points.items():
            if room and (key not in counting or _is_open(counting[key], failed_before)):
                study.enqueue_trial(point, user_attrs={GRID: key})
                room -= 1


def _is_open(trial: FrozenTrial, failed_before: Collection[int]) -> bool:
    """A point whose trial failed is tried again, of its own making only in a later call.

    Two drivers that each try again what failed under the other would never end.
    """
    given_back = trial.state is TrialState.FAIL and not own_failure(trial)
    return given_back or trial.number in failed_before


def count(found: Iterable[FrozenTrial], *states: TrialState) -> int:
    return sum(trial.state in states for trial in found)


def check_fingerprint(study: optuna.Study, fingerprint: dict[str, Any], *, extend: bool) -> None:
    """Remember what the study is of. Raises UserError where it was something else before."""
    now = json.loads(json.dumps(fingerprint))
    stored = study.user_attrs.get("fingerprint", now)
    # earlier versions kept some of what is free now
    before = {k: v for k, v in stored.items() if k in now or not f"{k}=".startswith(FREE)}
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)}
    # Optuna allows another interval of a parameter, but no other choices.
    choices = {k for k in changed if "Categorical" in f"{before.get(k)}{now.get(k)}"}
    if changed and not (extend and not choices & before.keys() & now.keys()):
        differences = "; ".join(
            f"{k}: {before.get(k, 'not there')} -> {now.get(k, 'not there')}"
            for k in sorted(changed)
        )
        way_out = "" if choices else ", or sweep.extend=true to mix them"
        raise UserError(
            f"the sweep {study.study_name} was begun with another space; {differences}; "
            f"take another sweep.name{way_out}"
        )
    study.set_user_attr("fingerprint", now)


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
