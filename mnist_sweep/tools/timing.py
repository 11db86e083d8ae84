"""Measures how long a model takes."""

import statistics
import timeit
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

CALLS = 30  # whose median is reported


def median_ms(predict: Callable[[NDArray[Any]], Any], images: NDArray[Any]) -> float:
    """Return the median time of a call in milliseconds, after one call that warms up."""
    seconds = timeit.repeat(lambda: predict(images), number=1, repeat=CALLS + 1)
    return 1000 * statistics.median(seconds[1:])
