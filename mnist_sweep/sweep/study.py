"""The study in its database: opening it, finding dead trials, queueing their parameters again."""

import json
import logging
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock, Timeout
from omegaconf import DictConfig
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from mnist_sweep.common import processes, sqlite
from mnist_sweep.common.configs import is_under
from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.files import make_database, make_folder
from mnist_sweep.common.secrets import mask_in, mask_url
from mnist_sweep.sweep import optuna_internals

log = logging.getLogger(__name__)
T = TypeVar("T")
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats, groups of parameters
warnings.filterwarnings("ignore", "Heartbeat of storage")  # workers beat outside Study.optimize

SQLITE_TIMEOUT_S = 5  # to wait for a lock within one call
# A server that vanished without closing its connections would be waited for by the hour.
POSTGRES_TIMEOUTS = {
    "connect_timeout": 10,  # seconds
    "tcp_user_timeout": 60_000,  # milliseconds until what was sent is acknowledged
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
}
RETRY_S = 1.0  # between two calls of a database that is away; at first less
# parts of SQLite's messages that speak of a passing state
SQLITE_OUTAGES = ("locked", "busy", "unable to open", "disk I/O", "is full")
# invalid authorization, no such database
REFUSING_STATES = ("28", "3D")
# the same as text, because a connection that fails has no SQLSTATE; of PostgreSQL and MySQL
REFUSALS = (
    *("password authentication failed", "no password supplied", "no pg_hba.conf entry"),
    *("does not exist", "is not permitted to log in", "permission denied"),
    *("Access denied", "Unknown database"),
)
QUEUE_LENGTH = 64  # points of a grid in the queue at once
LOCK_TIMEOUT_S = 60  # of a file lock
CLOCK_S = 0.1  # by which a file system's clock may be behind
MAX_NAME_LENGTH = 200  # bytes; file systems allow 255
FIRST_CONTACTS = 5  # attempts to open a new database on a server
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

# User attributes of a trial.
# process_identity() of the process that runs the trial, with that of its `driver` and its `invocation`
WORKER = "worker"
REPLACED = "replaced"  # reason for a FAIL that is not the trial's own fault, one of:
STALE, INTERRUPTED, SURPLUS, DUPLICATE = "stale", "interrupted", "surplus", "duplicate"
DEATHS = "deaths"  # attempts in a row that ended without progress; see `retry`
FIRST = "first"  # of a retry: the number of the first attempt
# set when all parameters are drawn; of a queued retry: of the attempt before
DIRECTORY = "directory"
RESUME = "resume"  # directory of an earlier attempt that left a checkpoint
ERROR = "error"
SUMMARY = "summary"  # final metrics of the run
GRID = "grid"  # point of a grid, as JSON
NO_VALUE = "no value"  # of a complete trial of a grid whose task has no objective; its value is 0


class DatabaseError(UserError):
    """The database of a study fails in a way that no waiting mends."""


class Patience:
    """Waits for a database that is away.

    Args:
        url: of the database.
        key: of the setting that names the database.

    Attributes:
        waiting_for: why it waits at present, e.g. "database is locked"; None: it does not.
        given_up: set to raise the error instead of waiting.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.waiting_for: str | None = None
        self._reasons: set[str] = set()  # of the present outage
        self.since = 0.0  # time.monotonic() when it began to wait
        self.given_up = threading.Event()

    def __reduce__(self) -> Any:
        return Patience, (self.url, self.key)  # a copy in another process waits for itself

    def call(self, function: Callable[[], T]) -> T:
        """Call a function until the database answers.

        Raises:
            DatabaseError: the database fails in a way that no waiting mends.
        """
        pause_s = RETRY_S / 16
        while True:
            try:
                result = function()
            except (StorageInternalError, SQLAlchemyError) as error:
                cause = _cause(error)
                if cause is None or self.given_up.is_set():
                    raise
                orig = getattr(cause, "orig", None)
                reason = one_line(orig) if orig else "no connection is free"
                reason = mask_in(reason, self.url)
                if not _passes(cause, self.url):
                    self.waiting_for = None
                    where = f"{self.key}={mask_url(self.url)}"
                    raise DatabaseError(f"{where}: the database failed: {reason}") from error
                self._note(reason)
                self.given_up.wait(pause_s)
                pause_s = min(2 * pause_s, RETRY_S)
            else:
                self._note(None)
                return result

    def _note(self, reason: str | None) -> None:
        if reason is not None and self.waiting_for is None:
            self.since = time.monotonic()
            self._reasons.clear()
        if reason is not None and reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("WARNING: waiting for the database of the study: %s", reason)
        if reason is None and self.waiting_for is not None:
            log.info("the database is back after %.0f s", time.monotonic() - self.since)
        self.waiting_for = reason


def _cause(error: BaseException) -> DBAPIError | PoolTimeoutError | None:
    """The error of SQLAlchemy below one of Optuna's, if the database caused it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError | PoolTimeoutError):
        cause = cause.__cause__
    return cause


def _passes(cause: DBAPIError | PoolTimeoutError, url: str) -> bool:
    """Whether the state that an error of the database speaks of may pass by itself."""
    if isinstance(cause, PoolTimeoutError):
        return True
    message = str(cause.orig)
    if isinstance(cause.orig, sqlite3.Error):
        path = sqlite_path(url)
        is_gone = path is not None and not path.exists() and not path.parent.exists()
        return not is_gone and any(words in message for words in SQLITE_OUTAGES)
    state = getattr(cause.orig, "sqlstate", None) or ""
    refuses = state.startswith(REFUSING_STATES) or any(words in message for words in REFUSALS)
    return not refuses and isinstance(cause, OperationalError | InterfaceError)


class ExactStorage(RDBStorage):
    """Gives a queued trial to one worker only, and a dead trial to one reaper only.

    Optuna relies on SELECT ... FOR UPDATE, which SQLite ignores: 4 workers ran 10 of 60 queued trials
    twice.
    """

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if self.engine.dialect.name == "sqlite":
            session = self.scoped_session()
            try:
                session.execute(text("BEGIN IMMEDIATE"))  # Optuna's own commit or rollback ends it
            except SQLAlchemyError as error:
                session.close()
                raise StorageInternalError(str(error)) from error
        return super().set_trial_state_values(trial_id, state, values)

    def _get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        return optuna_internals.read_trials(self, *args, **kwargs)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> Any:
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        if trial.state == TrialState.RUNNING:
            optuna_internals.add_heartbeat(session, trial.trial_id)
        return trial

    def claim(self, *args: Any) -> bool:
        return optuna_internals.claim(self, *args)

    def replace(self, *args: Any) -> bool:
        return optuna_internals.replace(self, *args)


class PatientStorage(ExactStorage):
    """Waits in every call for a database that is away.

    A connection may break between a commit and its answer. The call is then repeated although it was
    done. That is harmless:

    - Parameters, attributes, reports, heartbeats: the same value is written again.
    - The end of a trial: a repeated call that finds the state which it wanted counts as done.
    - A new trial, or one taken from the queue: no worker receives the first one. The coordinator
      finds it at its next look and queues it again, see `Coordinator.reap`. No death is counted.
    - A retry: a repeated call finds that the trial is finished, and does nothing.
    - A point of a grid: of two trials of one point the later is surplus.
    """

    def __init__(self, url: str, key: str, **kwargs: Any) -> None:
        self.patience = Patience(url, key)
        # Optuna takes the URL for a template
        super().__init__(url.replace("{", "{{").replace("}", "}}"), **kwargs)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        n_calls = 0

        def set_values() -> bool:
            nonlocal n_calls
            n_calls += 1
            try:
                return super(PatientStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if n_calls > 1 and self.get_trial(trial_id).state is state:
                    return True
                raise

        return self.patience.call(set_values)


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(ExactStorage, name)

    @wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patience.call(partial(method, self, *args, **kwargs))

    return call


for _name in (*optuna_internals.STORAGE_CALLS, "claim", "replace"):
    setattr(PatientStorage, _name, _patient(_name))


def check_name(name: str, key: str = "sweep") -> None:
    """Raise UserError unless the name of a sweep can name a folder and stand in MLflow's queries."""
    if not re.fullmatch(r"[\w.+-]+", name) or not name.strip("."):
        raise UserError(f"{key}={name}: expected letters, digits and any of . _ - +, not only dots")
    if (length := len(name.encode())) > MAX_NAME_LENGTH:
        raise UserError(
            f"{key}={name[:20]}... has {length} bytes, expected at most {MAX_NAME_LENGTH}"
        )


def storage_url(url: str | None, store: str) -> str:
    return url or f"sqlite:///{Path(store).resolve()}/optuna.db"


def interrupt(study: optuna.Study, invocation: str) -> None:
    """Ask the workers of other launchers to stop."""
    study.set_user_attr(f"stop {invocation}", INTERRUPTED)


def is_interrupted(study: optuna.Study, invocation: str) -> bool:
    return f"stop {invocation}" in study.user_attrs


def give_up(study: optuna.Study) -> None:
    """Wait for the database no longer."""
    optuna_internals.backend(study).patience.given_up.set()


def sqlite_path(url: str, key: str = "storage") -> Path | None:
    """Return the file of an SQLite database; None for a server. Raises UserError for other SQLite."""
    if not url.startswith("sqlite"):
        return None
    path = url.removeprefix("sqlite:///").partition("?")[0]
    if path in (url, "", ":memory:"):
        raise UserError(f"{key}={url}: workers cannot read this; expected sqlite:///file")
    return Path(path)


def open_storage(
    url: str, grace_s: int, key: str = "storage", *, create: bool = False, wait: bool = False
) -> RDBStorage:
    """Open the database, with heartbeats.

    Args:
        key: of the setting that names the database.
        create: make the tables.
        wait: for a database that is away.

    Raises:
        UserError: the database cannot be opened, its driver is missing, or it is a journal file.
    """
    if url.startswith("journal"):
        raise UserError(
            f"{key}={mask_url(url)}: a journal file with a torn last line cannot be read again; "
            "expected sqlite:///file or postgresql://..."
        )
    # one connection, and one more for Optuna's own check of the tables
    engine: dict[str, Any] = {"pool_size": 1, "max_overflow": 1, "pool_timeout": LOCK_TIMEOUT_S}
    if url.startswith("sqlite"):
        engine["connect_args"] = {"timeout": SQLITE_TIMEOUT_S}
    elif url.startswith(("postgresql://", "postgresql+psycopg")):
        engine["connect_args"] = {k: v for k, v in POSTGRES_TIMEOUTS.items() if f"{k}=" not in url}

    def connect() -> RDBStorage:
        storage = PatientStorage(
            url,
            key,
            engine_kwargs=engine,
            heartbeat_interval=max(1, grace_s // 4),
            grace_period=grace_s,
            skip_compatibility_check=not create,
            skip_table_creation=not create,
        )
        with storage.engine.connect() as connection:
            connection.execute(text("SELECT 1 FROM studies LIMIT 1"))
        return storage

    try:
        return Patience(url, key).call(connect) if wait else connect()
    except ImportError as error:
        raise UserError(
            f"{key}={mask_url(url)} needs a database driver that is not installed; "
            "for postgresql://: pip install 'psycopg[binary]'"
        ) from error
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = mask_in(str(cause).splitlines()[0], url)
        raise UserError(f"{key}={mask_url(url)} cannot be opened: {reason}") from error


def create_study(
    url: str,
    grace_s: int,
    name: str,
    directions: list[Any],
    *,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    key: str = "storage",
) -> optuna.Study:
    """Create the study, or load it if it exists.

    Args:
        key: of the setting that names the database.

    Raises:
        UserError: the database cannot be opened, or the study has other objectives.
    """
    path = sqlite_path(url, key)
    if path is None:
        storage = _open_on_server(url, grace_s, key)
    else:
        sqlite.check_file(path, f"{key}={url}")
        make_folder(path.parent)
        # two processes that create the tables of an SQLite file at once would corrupt it
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
            make_database(path)
            storage = open_storage(url, grace_s, key, create=True)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=directions,
        load_if_exists=True,
        sampler=sampler,
        pruner=pruner,
    )
    if study.directions != optuna.create_study(directions=directions).directions:
        raise UserError(f"the sweep {name} has other objectives; choose another name")
    return study


def _open_on_server(url: str, grace_s: int, key: str) -> RDBStorage:
    """Retry: of two hosts that create the tables at once, one finds them half made."""
    for _ in range(FIRST_CONTACTS - 1):
        try:
            return open_storage(url, grace_s, key, create=True)
        except UserError as error:
            if not isinstance(error.__cause__, IntegrityError | ProgrammingError):
                raise
            time.sleep(1)
    return open_storage(url, grace_s, key, create=True)


def get_trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states or None)


def count(trials: Iterable[FrozenTrial], *states: TrialState) -> int:
    return sum(trial.state in states for trial in trials)


def own_failure(trial: FrozenTrial) -> bool:
    """Whether the trial itself failed, rather than being interrupted or replaced."""
    return trial.state is TrialState.FAIL and REPLACED not in trial.user_attrs


def reap(
    study: optuna.Study,
    trials: Iterable[FrozenTrial],
    settings: DictConfig,
    *,
    trust_heartbeats: bool = True,
) -> bool:
    """Queue again those of the trials whose process ended or whose heartbeat timed out.

    Args:
        trust_heartbeats: False: queue again only what a process of this host ran.

    Returns:
        Whether the driver of a trial has died, and its worker is about to save a checkpoint and end.
    """
    running = [t for t in trials if t.state is TrialState.RUNNING]
    if not running:
        return False
    silent = optuna_internals.stale_trial_ids(study) if trust_heartbeats else set()
    any_ends = False
    for trial in running:
        worker = trial.user_attrs.get(WORKER)
        started = trial.datetime_start or datetime.now()
        if worker is None:  # begun by another program, and nobody has run it
            age_s = (datetime.now() - started).total_seconds()
            if trust_heartbeats and age_s > settings.grace_s:
                requeue(study, trial, INTERRUPTED, settings)
            continue
        is_orphan = processes.is_dead(worker.get("driver", {}))
        is_silent = optuna_internals.trial_id(trial) in silent
        if processes.is_here(worker):  # on this host the process table is more reliable
            dead = processes.is_dead(worker) or (is_orphan and is_silent)
        else:
            dead = is_silent
        if dead and is_orphan:
            requeue(study, trial, INTERRUPTED, settings)  # it ended with its driver
        elif dead:
            retry(study, trial, STALE, settings)
        any_ends |= is_orphan and not dead and processes.is_here(worker)
    return any_ends


def retry(study: optuna.Study, trial: FrozenTrial, why: str, settings: DictConfig) -> None:
    """Queue a trial again whose process ended, or FAIL it if it makes no progress.

    An attempt makes progress if it leaves a new checkpoint. A trial FAILs after more than
    `settings.retries` attempts in a row without progress. Attempts that make progress are unlimited,
    so preemptions and time limits do not end a long trial.

    Args:
        why: STALE: the process died. INTERRUPTED: a signal ended it, which is not the trial's
            fault, so that a first interruption never FAILs it, not even with `retries=0`.
    """
    deaths = 0 if has_progressed(study, trial, settings) else trial.user_attrs.get(DEATHS, 0) + 1
    if deaths > (settings.retries if why == STALE else max(1, settings.retries)):
        fail(study, trial, f"its process ended {deaths} times in a row without progress")
    else:
        requeue(study, trial, why, settings, {DEATHS: deaths})


def has_progressed(study: optuna.Study, trial: FrozenTrial, settings: DictConfig) -> bool:
    """Whether an attempt left a checkpoint that is newer than the one it resumed from."""
    directory, resumed = (trial.user_attrs.get(key) for key in (DIRECTORY, RESUME))
    if not _left_checkpoint(study, trial, settings):
        return False
    if resumed is None or resumed == directory:
        return True
    saved_at, before = _saved_at(directory, settings), _saved_at(resumed, settings)
    return saved_at is not None and (before is None or saved_at > before)


def _left_checkpoint(study: optuna.Study, trial: FrozenTrial, settings: DictConfig) -> bool:
    """Whether a trial's directory holds a checkpoint of this attempt.

    A directory that the user named may hold one of another attempt, or of another sweep. There it must
    be newer than the start of the attempt.
    """
    directory = trial.user_attrs.get(DIRECTORY)
    saved_at = _saved_at(directory, settings)
    if saved_at is None or directory is None:
        return False
    path = Path(directory)
    if (path.parent.name, path.name) == (study.study_name, str(trial.number)):
        return True
    started = trial.datetime_start
    return started is not None and saved_at > started.timestamp() - CLOCK_S


def requeue(
    study: optuna.Study,
    trial: FrozenTrial,
    why: str,
    settings: DictConfig,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """FAIL this trial as replaced, and queue it again with its parameters and its checkpoint.

    If its process ended before all parameters were drawn, the next attempt draws them anew.
    """
    kept = {k: v for k, v in trial.user_attrs.items() if k in (DEATHS, RESUME, GRID, DIRECTORY)}
    directory = trial.user_attrs.get(DIRECTORY)
    if _left_checkpoint(study, trial, settings):
        kept[RESUME] = directory
    is_drawn = directory is not None
    recorded = optuna_internals.of_sampler(trial)
    successor = optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params if is_drawn else {},
        distributions=trial.distributions if is_drawn else {},
        user_attrs={FIRST: trial.user_attrs.get(FIRST, trial.number), **kept, **(attributes or {})},
        system_attrs={k: v for k, v in recorded.items() if is_drawn or k == "fixed_params"},
    )
    if optuna_internals.replace_trial(study, trial, {REPLACED: why}, successor):
        log.info("trial %d is %s: its parameters go back to the queue", trial.number, why)


def _saved_at(directory: str | None, settings: DictConfig) -> float | None:
    """The time of `settings.checkpoint` in a trial's directory; None if this host finds no such file."""
    if not directory or not settings.checkpoint:
        return None
    try:
        return (Path(directory) / str(settings.checkpoint)).stat().st_mtime
    except OSError:
        return None


def fail(study: optuna.Study, trial: FrozenTrial, why: str) -> None:
    """FAIL an unfinished trial and record why."""
    with suppress(UpdateFinishedTrialError):
        optuna_internals.set_trial_attribute(study, trial, ERROR, why)
        optuna_internals.set_state(study, trial, TrialState.FAIL)


def of_points(trials: Iterable[FrozenTrial], keys: Collection[str]) -> dict[str, FrozenTrial]:
    """The trial that counts for each point of a grid: the finished one, otherwise the latest."""
    counting: dict[str, FrozenTrial] = {}
    for trial in trials:
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
    """Queue the next points of a grid that have no trial, or whose trial failed in an earlier call.

    It queues a few at a time, because Optuna reads every queued trial anew at each look. The file
    lock keeps drivers from queueing the same points. While another driver holds it, this does nothing.
    Hosts without a common lock file are covered by `Coordinator._is_surplus`.
    """
    with suppress(Timeout), FileLock(lock, timeout=0):
        trials = get_trials(study)
        counting = of_points(trials, points)
        room = QUEUE_LENGTH if not count(trials, TrialState.WAITING) else 0
        for key, point in points.items():
            if room and (key not in counting or _is_open(counting[key], failed_before)):
                study.enqueue_trial(point, user_attrs={GRID: key})
                room -= 1


def _is_open(trial: FrozenTrial, failed_before: Collection[int]) -> bool:
    """Whether a point needs another trial.

    A trial that failed by itself is tried again only in a later call: two drivers that each retried
    what failed under the other would never end.
    """
    replaced = trial.state is TrialState.FAIL and not own_failure(trial)
    return replaced or trial.number in failed_before


def check_fingerprint(
    study: optuna.Study, fingerprint: dict[str, Any], settings: DictConfig
) -> None:
    """Remember the search space of the study. Raises UserError if it was another one before."""
    now = json.loads(json.dumps(fingerprint))
    stored = study.user_attrs.get("fingerprint", now)
    if not isinstance(stored, dict):
        raise UserError(
            f"mnist_sweep did not create the study {study.study_name}, or it is damaged"
        )
    free = (*settings.own_keys, *settings.may_change)
    before = {k: v for k, v in stored.items() if k in now or not is_under(k, free)}
    changed = {k for k in before.keys() | now.keys() if before.get(k) != now.get(k)}
    # Optuna allows another interval of a parameter, but no other choices
    choices = {k for k in changed if "Categorical" in f"{before.get(k)}{now.get(k)}"}
    if changed and not (settings.extend and not choices & before.keys() & now.keys()):
        differences = "; ".join(
            f"{k}: {before.get(k, 'absent')} -> {now.get(k, 'absent')}" for k in sorted(changed)
        )
        way_out = "" if choices else f", or set {settings.key}.extend=true to mix them"
        raise UserError(
            f"the sweep {study.study_name} has another search space; {differences}; "
            f"choose another {settings.key}.name{way_out}"
        )
    study.set_user_attr("fingerprint", now)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; False if it did not hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
