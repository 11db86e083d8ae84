"""The terminal, and tables as plain text."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

console = Console()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> str:
    """Format rows as a plain-text table with aligned columns."""
    rich_table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        rich_table.add_row(*row)
    return as_text(rich_table)


def as_text(table: Table) -> str:
    """Render a rich table as plain text, at most 160 characters wide."""
    plain = Console(width=160, no_color=True, highlight=False)
    with plain.capture() as capture:
        plain.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
