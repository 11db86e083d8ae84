"""The progress of a training run on the terminal."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_sweep.common.console import console

log = logging.getLogger(__name__)


@contextmanager
def epoch_bar(epoch: int, max_epochs: int, n_images: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar, on a terminal only; yield a function that advances it by n images."""
    columns = (
        TextColumn(f"epoch {epoch}/{max_epochs}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as progress:
        yield partial(progress.advance, progress.add_task("", total=n_images))


def log_epoch(epoch: int, max_epochs: int, metrics: Mapping[str, float], best: bool) -> None:
    """Log a finished epoch in one line."""
    log.info(
        "epoch %*d/%d  train loss %.4f acc %.2f%%  val loss %.4f acc %.2f%%  lr %.1e  "
        "%s images/s  %.1f s%s",
        len(str(max_epochs)),
        epoch,
        max_epochs,
        metrics["train/loss"],
        100 * metrics["train/accuracy"],
        metrics["val/loss"],
        100 * metrics["val/accuracy"],
        metrics["lr"],
        f"{metrics['images_per_s']:,.0f}",
        metrics["epoch_s"],
        "  best" if best else "",
    )
