"""Repeats calls to an MLflow store that is locked or away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)

RETRY_FOR_S = 120  # how long to wait for a store that another process locks

T = TypeVar("T")


def retried(call: Callable[[], T]) -> T:
    """Call, and repeat for RETRY_FOR_S seconds while the store is locked or its server is away."""
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            return call()
        except MlflowException as error:
            busy = error.error_code == "TEMPORARILY_UNAVAILABLE" or any(
                text in str(error) for text in ("is locked", "failed with exception")
            )
            if not busy or time.monotonic() > deadline:
                raise
            log.warning("the MLflow store is busy or away, trying again")
            time.sleep(1)
