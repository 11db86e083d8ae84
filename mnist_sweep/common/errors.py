"""Errors that the user can fix. The command line prints them as one line and exits with code 2."""

import difflib
import re
import sys
from collections.abc import Iterable


class UserError(Exception):
    """An error in the user's input. Its message says what was expected, what was given, what to do."""


def one_line(error: BaseException, limit: int = 300, *, with_kind: bool = False) -> str:
    """Return the message of an error as one line of at most `limit` characters.

    Args:
        with_kind: begin with the name of its class, which some messages mean nothing without.
    """
    text = f"{type(error).__name__}: {error}" if with_kind else str(error)
    return " ".join(text.split())[:limit]


def fail(message: str) -> int:
    """Print an error as one line, with long values cut, and return the exit code 2."""
    line = " ".join(part.strip() for part in message.splitlines())
    line = re.sub(r"(\S{100})\S{200,}(\S{20})", r"\1...\2", line)
    print(f"error: {line}", file=sys.stderr)
    return 2


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean '...'?)" if one of `choices` resembles `word`, otherwise ""."""
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), list(by_folded), n=1)
    return f" (did you mean '{by_folded[close[0]]}'?)" if close else ""
