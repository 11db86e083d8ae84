"""Passwords in messages."""

import pytest

from mnist_sweep.common.errors import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("postgresql://ann:se/cr@et@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://host/db?user=ann&password=secret&x=1", None),
        ("tracking.uri=http://ann:secret@host:5000", "tracking.uri=http://ann:***@host:5000"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////tmp/a/optuna.db", "sqlite:////tmp/a/optuna.db"),
    ],
)
def test_only_the_password_is_masked(url: str, shown: str | None) -> None:
    shown = shown or "postgresql://host/db?user=ann&password=***&x=1"
    assert without_password(url) == shown
