"""Sweeps of several hosts on one PostgreSQL server."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.processes import process_identity
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.worker import Assignment, Result
from tests.helpers.cli import SMALL, cli
from tests.helpers.engine import end, output, run, start, states, wait_for
from tests.sweep.test_coordinator import make_coordinator

pytestmark = pytest.mark.postgres
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
AS_ROOT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
USER, PASSWORD = "ann", "planted pass/word?x:y"  # of a role that must give its password
ELSEWHERE = ["unshare", *AS_ROOT, "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]


class Server:
    """An empty server in a folder of its own.

    Attributes:
        url: without the name of a database.
    """

    def __init__(self, folder: Path) -> None:
        (self._programs,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        if AS_POSTGRES:
            shutil.chown(folder, "postgres")
        self._options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        self.url = f"postgresql://postgres@127.0.0.1:{port}"
        self._call("initdb", "-D", f"{folder}/data", "-U", "postgres", "--auth=trust")
        access = folder / "data" / "pg_hba.conf"
        access.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")

    def _call(self, program: str, *arguments: str) -> None:
        command = [*AS_POSTGRES, str(self._programs / program), *arguments]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def start(self) -> None:
        log = str(self._folder / "log")
        data = f"{self._folder}/data"
        self._call("pg_ctl", "start", "-w", "-D", data, "-o", self._options, "-l", log)

    def stop(self) -> None:
        self._call("pg_ctl", "stop", "-m", "immediate", "-D", f"{self._folder}/data")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    server = Server(folder)
    server.start()
    try:
        execute(server.url, f"CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def server(cluster: Server) -> str:
    """URL of the server, without the name of a database."""
    return cluster.url


@pytest.fixture
def database(server: str) -> str:
    name = f"study_{uuid.uuid4().hex}"
    create(server, name)
    return f"{server}/{name}"


def create(server: str, name: str) -> None:
    execute(server, f"CREATE DATABASE {name}")


def execute(server: str, statement: str) -> None:
    subprocess.run(["psql", "-q", f"{server}/postgres", "-c", statement], check=True)


@pytest.mark.parametrize("key", ["sweep.storage", "tracking.uri"])
def test_refusing_server_is_named_without_the_password(
    server: str, key: str, tmp_path: Path
) -> None:
    url = server.replace("postgres@", "postgres:secret@") + "/nosuch"
    arguments = ["-m", "model=mlp,simple", "data=mnist5k", f"{key}=${{oc.env:URL}}"]
    done = cli(*arguments, store=tmp_path / "store", URL=url)
    assert done.returncode == 2
    (line,) = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
    assert f"{url.replace('secret', '***')}" in line
    assert "nosuch" in line
    assert "secret" not in done.stdout + done.stderr


def trials(url: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name="s", storage=optuna.storages.RDBStorage(url)).trials


GRID = ["x=range(0,16)", "sweep.name=s", "sweep.n_jobs=2", "sleep_s=0.05"]


def test_two_hosts_run_every_point_of_a_grid_once(database: str, tmp_path: Path) -> None:
    events = tmp_path / "events"
    arguments = [*GRID, f"sweep.storage={database}", f"events={events}"]
    first = start(*arguments, store=tmp_path / "one")
    other = start(*arguments, store=tmp_path / "two", prefix=ELSEWHERE)
    try:
        assert (first.wait(120), other.wait(120)) == (0, 0)
    finally:
        end(first)
        end(other)
    assert states(trials(database))["COMPLETE"] == 16
    started = [line.split()[1] for line in events.read_text().splitlines() if "start" in line]
    assert Counter(started) == {f"x={i}": 1 for i in range(16)}


def test_trials_of_a_lost_host_run_on_another(database: str, tmp_path: Path) -> None:
    arguments = [*GRID, f"sweep.storage={database}", "sweep.grace_s=4", "sleep_s=0.5"]
    lost = start(*arguments, store=tmp_path / "lost", prefix=ELSEWHERE)
    try:
        wait_for(lambda: "[2/16]" in (tmp_path / "lost" / "out.txt").read_text())
        os.killpg(lost.pid, signal.SIGKILL)
        lost.wait()
        assert states(trials(database))["RUNNING"] >= 1
        code, output = run(*arguments, store=tmp_path / "other")
    finally:
        end(lost)
    assert code == 0, output
    found = states(trials(database))
    assert found["COMPLETE"] == 16
    assert found["RUNNING"] == 0
    assert found["stale"] >= 1


@pytest.mark.parametrize(
    ("ended_by", "state"), [(signal.SIGKILL, "stale"), (signal.SIGINT, "interrupted")]
)
def test_training_started_on_one_host_completes_on_another_with_its_own_store(
    server: str, database: str, tmp_path: Path, ended_by: signal.Signals, state: str
) -> None:
    tracking = f"{server}/runs_{ended_by.name.lower()}"
    create(server, f"runs_{ended_by.name.lower()}")
    grid = ["model=mlp,compact", "data=mnist5k", "data.train_size=200", "device=cpu"]
    grid += ["trainer.max_epochs=150", "trainer.early_stopping.patience=null", "sweep.grace_s=4"]
    grid += [f"sweep.storage={database}", f"tracking.uri={tracking}", "sweep.name=s"]
    lost = start(*grid, store=tmp_path / "lost", module="mnist_sweep", prefix=ELSEWHERE)
    try:
        wait_for(lambda: list((tmp_path / "lost").glob("outputs/s/*/last.pt")))
        os.killpg(lost.pid, ended_by)
        lost.wait(60)
    finally:
        end(lost)
    (tmp_path / "lost").rename(tmp_path / "out of reach")
    code, output = run(*grid, store=tmp_path / "other", module="mnist_sweep")
    assert code == 0, output
    found = states(trials(database))
    assert (found["COMPLETE"], found[state]) == (2, 1), found
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("mnist_sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    assert sorted(r.data.tags.get("model", "sweep") for r in runs) == ["compact", "mlp", "sweep"]
    assert not (tmp_path / "other" / "mlflow.db").exists()


SWEEP = ["model=mlp,compact", *SMALL, "device=cpu", "sweep.name=s", "sweep.n_jobs=2"]


def dump(url: str) -> str:
    """Return everything in a database as text."""
    return subprocess.run(["pg_dump", url], capture_output=True, text=True, check=True).stdout


def secrets_in(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if b"planted" in path.read_bytes()]


def test_password_from_the_environment_is_left_nowhere(
    server: str, database: str, tmp_path: Path
) -> None:
    runs = f"runs_{uuid.uuid4().hex}"
    create(server, runs)
    host = server.partition("@")[2]
    with_password = f"postgresql://{USER}:{PASSWORD}@{host}"
    code, output = run(
        *(*SWEEP, "sweep.storage=${oc.env:STUDY}", "tracking.uri=${oc.env:RUNS}"),
        store=tmp_path / "store",
        module="mnist_sweep",
        STUDY=f"{with_password}/{database.rpartition('/')[2]}",
        RUNS=f"{with_password}/{runs}",
    )
    assert code == 0, output
    assert states(trials(database)) == {"COMPLETE": 2}
    assert f"postgresql://{USER}:***@{host}/{runs}" in output  # in the link
    records = dump(f"{server}/{runs}")
    assert f"postgresql://{USER}:***@{host}/{runs}" in records
    assert "planted" not in records + dump(database) + output
    assert secrets_in(tmp_path) == []


@pytest.mark.parametrize("way", ["PGPASSWORD", "~/.pgpass"])
def test_password_reaches_study_and_runs_without_a_url(
    server: str, database: str, tmp_path: Path, way: str
) -> None:
    runs = f"runs_{uuid.uuid4().hex}"
    create(server, runs)
    host, _, study = database.partition("@")[2].partition("/")
    variables = {"PGPASSWORD": PASSWORD}
    if way != "PGPASSWORD":
        file = tmp_path / "home" / ".pgpass"
        file.parent.mkdir()
        file.write_text("*:*:*:{}:{}\n".format(USER, PASSWORD.replace(":", "\\:")))
        file.chmod(0o600)
        variables = {"HOME": str(file.parent)}
    uris = [f"sweep.storage=postgresql://{USER}@{host}/{study}"]
    uris += [f"tracking.uri=postgresql://{USER}@{host}/{runs}"]
    store = tmp_path / "store"
    code, output = run(*SWEEP, *uris, store=store, module="mnist_sweep", **variables)
    assert code == 0, output
    assert states(trials(database)) == {"COMPLETE": 2}
    assert "planted" not in output + dump(database) + dump(f"{server}/{runs}")
    assert secrets_in(store) == []


def test_driver_has_one_connection_whatever_the_number_of_workers(
    server: str, database: str, tmp_path: Path
) -> None:
    arguments = ["x=range(0,24)", "sweep.name=s", "sweep.n_jobs=8", "sleep_s=0.3", "epochs=3"]
    driver = start(*arguments, f"sweep.storage={database}", store=tmp_path)
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database.rpartition('/')[2]}'"
    command = ["psql", "-q", "-A", "-t", f"{server}/postgres", "-c", query]
    counts = []
    try:
        wait_for(lambda: "[2/24]" in output(tmp_path))
        while driver.poll() is None and "[24/24]" not in output(tmp_path):
            counts.append(int(subprocess.run(command, check=True, capture_output=True).stdout))
            time.sleep(0.2)
        assert driver.wait(60) == 0
    finally:
        end(driver)
    assert counts
    assert set(counts) == {1}


@pytest.mark.parametrize("n_drivers", [1, 2])
def test_server_that_is_away_for_a_while_costs_nothing(
    cluster: Server, database: str, tmp_path: Path, n_drivers: int
) -> None:
    """Training goes on; reports and results wait. Drivers do not take one another for dead."""
    arguments = ["x=range(0,8)", "sweep.name=s", "sweep.n_jobs=2", "sleep_s=0.3", "epochs=6"]
    arguments += [f"sweep.storage={database}", f"events={tmp_path}/events", "sweep.grace_s=4"]
    drivers = [
        start(*arguments, store=tmp_path / str(i), prefix=ELSEWHERE if i else [])
        for i in range(n_drivers)
    ]
    events = tmp_path / "events"
    try:
        wait_for(lambda: "[2/8]" in output(tmp_path / "0"))
        cluster.stop()
        try:
            before = events.read_text().count("end")
            wait_for(lambda: events.read_text().count("end") > before, 20)
            time.sleep(6)
        finally:
            cluster.start()
        assert [driver.wait(60) for driver in drivers] == [0] * n_drivers
    finally:
        for driver in drivers:
            end(driver)
    found = trials(database)
    complete = [t for t in found if t.state is TrialState.COMPLETE]
    # drivers that start at once both queue the grid, but each point runs once
    assert states(found).keys() <= {"COMPLETE", "surplus"}
    assert sorted(t.params["x"] for t in complete) == list(range(8))
    assert events.read_text().count("start") == 8
    assert all(len(t.intermediate_values) == 6 for t in complete), "no report is lost"
    assert "waiting for the database of the study" in output(tmp_path / "0")


@pytest.fixture
def role(server: str, database: str) -> str:
    """URL of the database for a role of its own, which is no superuser."""
    name = database.rpartition("/")[2]
    execute(server, f"CREATE ROLE {name} LOGIN")
    execute(server, f"ALTER DATABASE {name} OWNER TO {name}")
    return database.replace("postgres@", f"{name}@")


def cut_off(database: str) -> None:
    """End all connections to a database."""
    server, _, name = database.rpartition("/")
    ids = f"SELECT pid FROM pg_stat_activity WHERE datname = '{name}'"
    execute(server, f"SELECT pg_terminate_backend(pid) FROM ({ids}) AS sessions")


def test_connections_that_run_out_are_waited_for_and_a_refusal_is_not(
    server: str, database: str, role: str, tmp_path: Path
) -> None:
    arguments = ["x=1,2", "sweep.name=s", "sleep_s=0.2", "epochs=1000", f"sweep.storage={role}"]
    name = database.rpartition("/")[2]
    driver = start(*arguments, store=tmp_path)
    try:
        wait_for((tmp_path / "outputs/s/0/.hydra").exists)
        execute(server, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        cut_off(database)
        wait_for(lambda: "too many connections" in output(tmp_path))
        execute(server, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        wait_for(lambda: "the database is back" in output(tmp_path))
        execute(server, f"ALTER ROLE {name} NOLOGIN")
        cut_off(database)
        assert driver.wait(30) == 1
    finally:
        end(driver)
    out = output(tmp_path)
    assert "is not permitted to log in" in out
    assert "Traceback" not in out
    assert states(trials(database)) == {"RUNNING": 1, "WAITING": 1}


def test_worker_of_another_launcher_waits_for_a_connection(
    server: str, database: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage.create_study(role, 60, "s", ["maximize"])
    name = database.rpartition("/")[2]
    execute(server, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    with ThreadPoolExecutor() as pool:
        opened = pool.submit(storage.open_storage, role, 60, wait=True)
        try:
            wait_for(lambda: "too many connections" in caplog.text)
            with pytest.raises(UserError, match="too many connections"):
                storage.open_storage(role, 60)
        finally:
            execute(server, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        assert opened.result(30)


def test_database_that_is_dropped_ends_the_sweep(
    server: str, database: str, tmp_path: Path
) -> None:
    arguments = ["x=1,2", "sweep.name=s", "sleep_s=0.2", "epochs=1000", f"sweep.storage={database}"]
    driver = start(*arguments, store=tmp_path)
    try:
        wait_for((tmp_path / "outputs/s/0/.hydra").exists)
        execute(server, f"DROP DATABASE {database.rpartition('/')[2]} WITH (FORCE)")
        assert driver.wait(30) == 1
    finally:
        end(driver)
    assert "does not exist" in output(tmp_path)
    assert "Traceback" not in output(tmp_path)


class CuttingProxy:
    """Passes bytes to a server. It can cut a connection between a commit and its answer."""

    def __init__(self, port: int) -> None:
        self._port, self._n_commits = port, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, n_commits: int) -> None:
        """Cut at this commit from now on."""
        self._n_commits = n_commits

    @property
    def has_cut(self) -> bool:
        return self._n_commits <= 0

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                cut = threading.Event()
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(*pair, cut), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError), source, target:
            while data := source.recv(65536):
                if data.endswith(b"COMMIT\0"):  # from the client
                    self._n_commits -= 1
                    if self._n_commits == 0:
                        cut.set()
                elif cut.is_set():  # the server's answer
                    break
                target.sendall(data)
            for end in (source, target):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(server: str) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(int(server.rpartition(":")[2]))
    yield proxy
    proxy.close()


def test_lost_answers_of_commits_change_nothing(
    proxy: CuttingProxy, server: str, database: str, tmp_path: Path
) -> None:
    """One commit after the other is cut off while trials are given out, end, or are queued again."""
    url = database.replace(server, f"postgresql://postgres@127.0.0.1:{proxy.port}")
    coordinator = make_coordinator(tmp_path, url=url, n_trials=60, grace_s=1, retries=1000)

    def next_assignment() -> Assignment:
        while (assignment := coordinator.next(process_identity())) is None:
            coordinator.tick()  # queues trials that were lost on the way again
        return assignment

    def tell(number: int) -> None:
        coordinator.tell(number, Result(values=[1.0]))

    def release(number: int) -> None:
        coordinator.release(number, storage.STALE)

    for finish in (tell, release):
        for n_commits in itertools.count(1):
            assignment = next_assignment()
            proxy.cut_at(n_commits)
            finish(assignment.number)
            if not proxy.has_cut:
                break
    for n_commits in itertools.count(1):
        proxy.cut_at(n_commits)
        assignment = next_assignment()
        has_cut = proxy.has_cut
        tell(assignment.number)
        if not has_cut:
            break
    assert n_commits > 5
    while not coordinator.is_over:
        if (assignment := coordinator.next(process_identity())) is not None:
            tell(assignment.number)
        coordinator.tick()
    found = coordinator.look()
    assert states(found)["COMPLETE"] == 60
    for trial in found:
        if trial.user_attrs.get("replaced") == "stale":
            first = trial.user_attrs.get("first", trial.number)
            attempts = [t for t in found if first in (t.number, t.user_attrs.get("first"))]
            assert [t.state for t in attempts if "replaced" not in t.user_attrs] == [
                TrialState.COMPLETE
            ]
