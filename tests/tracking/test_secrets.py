"""Credentials of an MLflow server reach the server, and nothing that a command leaves behind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mnist_sweep.common.errors import UserError
from mnist_sweep.tracking.run import store_uri
from tests.helpers.cli import SMALL, cli, free_port, run
from tests.helpers.servers import guarded, mlflow_server

USER, PASSWORD, TOKEN = "ann", "planted pass/word", "plantedtoken"
PLANTED = (b"planted", b"cGxhbnRlZ", b"YW5uOnBsYW50")  # as text, and in base64 as headers have it


def files_with_secrets(folder: Path) -> list[str]:
    """Return the files below a folder, databases included, that contain a planted secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(f) for f in files if any(planted in f.read_bytes() for planted in PLANTED)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A folder with all files of a server, its address, and the address that asks for credentials."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, free_port()) as uri, guarded(uri, USER, PASSWORD, TOKEN) as guard:
        yield folder, uri, guard


@pytest.mark.slow
def test_sweep_on_a_server_leaves_no_secret(server: tuple[Path, str, str], fresh: Path) -> None:
    folder, uri, guard = server
    url = guard.replace("http://", f"http://{USER}:{PASSWORD.replace(' ', '%20')}@")
    done = cli(
        *("-m", *SMALL, "seed=0,1", "sweep.name=s", "tracking.uri=${oc.env:RUNS}"),
        store=fresh,
        RUNS=url.replace("pass/word", "pass%2Fword"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "View run" in done.stdout + (fresh / "outputs/s/.workers/0.log").read_text()
    assert guard in done.stdout  # the link to the comparison
    assert "planted" not in done.stdout + done.stderr
    assert files_with_secrets(fresh) == []
    assert files_with_secrets(folder) == []
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("mnist_sweep").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
    assert "planted" not in json.dumps([run.to_dictionary() for run in runs])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}, 0),
        ({"MLFLOW_TRACKING_TOKEN": TOKEN}, 0),
        ({"MLFLOW_TRACKING_TOKEN": "plantedwrong"}, 2),
    ],
)
def test_server_takes_the_credentials_of_mlflows_variables(
    server: tuple[Path, str, str], fresh: Path, variables: dict[str, str], code: int
) -> None:
    done = cli(*SMALL, f"tracking.uri={server[2]}", store=fresh, **variables)
    assert done.returncode == code, done.stdout + done.stderr
    assert "planted" not in done.stdout + done.stderr
    assert files_with_secrets(fresh) == []
    if code:
        (line,) = done.stderr.splitlines()
        assert f"tracking.uri={server[2]} refuses these credentials (401 Unauthorized)" in line
        assert "MLFLOW_TRACKING_TOKEN" in line


@pytest.mark.parametrize("url", ["https://token@host", "https://host?access_token=token"])
def test_token_in_the_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"\*\*\*.*MLFLOW_TRACKING_TOKEN$") as caught:
        store_uri(url, "mlruns")
    assert "token@" not in str(caught.value)


REFUSED = [
    ("tracking.uri=http://ann:planted@127.0.0.1:9",),
    ("tracking.uri=postgresql://ann:planted@127.0.0.1:9/runs",),
    ("tracking.register=http://planted@host",),
    ("-m", "seed=0,1", "tracking.uri=http://planted@127.0.0.1:9"),
    ("-m", "seed=0,1", "sweep.storage=postgresql://ann:planted@127.0.0.1:9/study"),
    ("-m", "seed=0,1", "tracking.uri=http://127.0.0.1:9,http://ann:planted@127.0.0.1:9"),
    ("sweep.storage=postgresql://ann:planted@127.0.0.1:9/study",),
    ("report", "storage=postgresql://ann:planted@127.0.0.1:9/study"),
    ("predict", "x.png", "tracking.uri=http://ann:planted@127.0.0.1:9"),
    ("tracking.uri=http://ann:planted'@127.0.0.1:9",),  # does not parse
]


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_spelled_out_secret_is_refused_and_left_nowhere(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(*arguments, env={"MNIST_SWEEP_STORE": str(tmp_path / "store")})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "***" in line
    assert "planted" not in done.stdout + done.stderr
    assert not (tmp_path / "store").exists()
