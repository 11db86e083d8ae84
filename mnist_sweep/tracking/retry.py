"""Tells a store that is locked or away from one that refuses, and repeats calls to it."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import filelock
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import InterfaceError, OperationalError

log = logging.getLogger(__name__)

RETRY_FOR_S = 120  # how long a tool waits for a store that is locked or away

T = TypeVar("T")


def is_locked(error: BaseException) -> bool:
    """Whether another process holds the lock of an SQLite store."""
    return "is locked" in str(error)


def is_outage(error: BaseException) -> bool:
    """Whether an error says that the store is locked or away, so that a later call may succeed.

    A server that answers 4xx refuses the request: that is no outage.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MlflowException):
            # an answer 429 or 5xx is one of these too, after MLflow's own retries
            texts = ("is locked", "failed with exception", "failed with timeout exception")
            return cause.error_code == "TEMPORARILY_UNAVAILABLE" or any(
                text in str(cause) for text in texts
            )
        if isinstance(
            cause,
            filelock.Timeout
            | requests.ConnectionError
            | requests.Timeout
            | OperationalError
            | InterfaceError,
        ):
            return True
        cause = cause.__cause__
    return False


def retried(call: Callable[[], T], patience_s: float = RETRY_FOR_S) -> T:
    """Call, and repeat for `patience_s` seconds while the store is locked or away."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error) or time.monotonic() > deadline:
                raise
            log.warning("the MLflow store is busy or away, trying again")
            time.sleep(1)
