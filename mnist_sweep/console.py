"""What a person at a terminal sees of a run; plain lines where the output is no terminal."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)
console = Console()


class Bar(Protocol):
    def advance(self, n_images: int) -> None: ...


class _Silent:
    def advance(self, n_images: int) -> None:
        pass


class _RichBar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def advance(self, n_images: int) -> None:
        self._progress.advance(self._task, n_images)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


@contextmanager
def epoch_bar(epoch: int, max_epochs: int, n_images: int, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar with images/s and the time left in this epoch; it leaves when the epoch ends."""
    if quiet or not console.is_terminal:
        yield _Silent()
        return
    columns = (
        TextColumn(f"epoch {epoch}/{max_epochs}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
        _Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _RichBar(progress, n_images)


def epoch_line(epoch: int, max_epochs: int, metrics: Mapping[str, float], best: bool) -> None:
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


def model_table(rows: list[tuple[str, str, int]], title: str) -> None:
    """`rows` as of models.summary. To the log as plain text: it is part of what a run leaves behind."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("output")
    table.add_column("parameters", justify="right")
    for layer, shape, parameters in rows:
        table.add_row(layer, shape, f"{parameters:,}" if parameters else "")
    log.info(as_text(table))


def as_text(table: Table) -> str:
    plain = Console(width=160, no_color=True, highlight=False)
    with plain.capture() as capture:
        plain.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
