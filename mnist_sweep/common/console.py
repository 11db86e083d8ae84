"""The terminal and tables of plain text."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

console = Console()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> str:
    made = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return as_text(made)


def as_text(table: Table) -> str:
    plain = Console(width=160, no_color=True, highlight=False)
    with plain.capture() as capture:
        plain.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
