"""What a command creates can be read by its owner and the group, and by nobody else."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import SMALL, run


def readable_by_others(folder: Path) -> Iterator[Path]:
    """Yield the files that others can reach below a folder that they can enter."""
    for path in folder.iterdir():
        mode = path.stat().st_mode
        if path.is_dir():
            if mode & stat.S_IXOTH:
                yield from readable_by_others(path)
        elif mode & stat.S_IROTH:
            yield path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that everyone may read, after a run, a sweep and a tool with the usual umask."""
    folder = tmp_path_factory.mktemp("store")
    folder.chmod(0o755)
    for arguments in ([], ["-m", "seed=0,1", "sweep.name=s"]):
        done = run(f"store={folder}", *SMALL, *arguments, fresh=True, umask=0o022)
        assert done.returncode == 0, done.stderr
    done = run("evaluate", f"store={folder}", fresh=True, umask=0o022)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_others_can_read_no_database_no_run_and_no_log(store: Path) -> None:
    reachable = {str(path.relative_to(store)) for path in readable_by_others(store)}
    assert reachable <= {"mlflow.lock", "optuna.lock"}  # empty files
    assert store.stat().st_mode & 0o777 == 0o755, "an existing folder keeps its mode"


@pytest.mark.slow
def test_group_can_read_all(store: Path) -> None:
    modes = {path: path.stat().st_mode for path in store.rglob("*")}
    needed = {path: 0o050 if path.is_dir() else 0o040 for path in modes}
    assert [str(path) for path, mode in modes.items() if mode & needed[path] != needed[path]] == []


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o750), (0o002, 0o770), (0o077, 0o700)])
def test_new_store_is_closed_to_others(fresh: Path, umask: int, mode: int) -> None:
    arguments = ("-m", "x=1,2", "epochs=0", "sweep.name=s", f"store={fresh}")
    done = run(*arguments, module="tests.helpers.apps.sleeper", fresh=True, umask=umask)
    assert done.returncode == 0, done.stderr
    for folder in (fresh, fresh / "outputs", fresh / "outputs" / "s"):
        assert folder.stat().st_mode & 0o777 == mode
    assert (fresh / "optuna.db").stat().st_mode & 0o777 == mode & 0o666
