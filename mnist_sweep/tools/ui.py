"""Starts MLflow's UI over a store, and optuna-dashboard next to it."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from mnist_sweep.common import signals, sqlite
from mnist_sweep.common.errors import UserError
from mnist_sweep.tracking import links, queries
from mnist_sweep.tracking.links import UI_HOST
from mnist_sweep.tracking.run import store_uri

STOP_S = 10  # how long a server may take to stop before it is killed
DASHBOARD_PORT = 8080


def run(cfg: DictConfig, _overrides: Sequence[str]) -> None:
    """Serve the UI of `cfg.store` until Ctrl-C. Exits with the code of MLflow's server if that ends."""
    store = Path(cfg.store).resolve()
    if not (store / "mlflow.db").exists():
        raise UserError(f"{store} contains no runs; {queries.TRAIN_ONE}")
    sqlite.check_file(store / "mlflow.db", f"store={cfg.store}")
    if cfg.dashboard:
        _check_dashboard(store)
    for signum in (signal.SIGTERM, signal.SIGINT):  # a shell ignores SIGINT for commands with &
        signal.signal(signum, signal.default_int_handler)
    servers = []
    try:
        port = find_free_port(cfg.port)
        pages = links.ui_links(store_uri(None, str(store)), port, list(cfg.sweep))
        servers.append(_start(_mlflow_command(store, port)))
        for title, url in pages.items():
            print(f"{title}: {url}", flush=True)
        if cfg.dashboard:
            port = find_free_port(DASHBOARD_PORT)
            servers.append(_start(_dashboard_command(store, port)))
            print(f"optuna-dashboard: {links.ui_url('/dashboard', port)}", flush=True)
        print("Ctrl-C stops it", flush=True)
        sys.exit(servers[0].wait())
    except KeyboardInterrupt:
        pass
    finally:
        with signals.ignored():  # a second Ctrl-C would leave servers running
            for server in servers:
                _stop(server)


def find_free_port(wanted: int, host: str = UI_HOST) -> int:
    """Return `wanted` if it is free, otherwise another port, and print that.

    Raises:
        UserError: this machine has no address `host`.
    """
    if not host:  # the system would serve on all addresses
        raise UserError("host: expected an address of this machine")
    for port in (wanted, 0):  # 0: the system chooses
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise UserError(f"host={host}: {error.strerror}") from error
                print(f"port {wanted} is taken, using another", flush=True)
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the system has no free port")


def _mlflow_command(store: Path, port: int) -> list[str]:
    flags = {
        "--backend-store-uri": store_uri(None, str(store)),
        "--artifacts-destination": (store / "artifacts").as_uri(),
        "--host": UI_HOST,
        "--port": str(port),
        "--workers": "1",  # MLflow's default of four takes 2.7 GiB
    }
    return [sys.executable, "-m", "mlflow", "server", *(x for flag in flags.items() for x in flag)]


def _check_dashboard(store: Path) -> None:
    """Raise UserError if optuna-dashboard is not installed or the store contains no sweep."""
    if find_spec("optuna_dashboard") is None:
        raise UserError("dashboard=true needs optuna-dashboard: pip install optuna-dashboard")
    if not (store / "optuna.db").exists():
        raise UserError(f"{store} contains no sweep; python -m mnist_sweep -m runs one")
    sqlite.check_file(store / "optuna.db", f"store={store}")


def _dashboard_command(store: Path, port: int) -> list[str]:
    module = "mnist_sweep.tools.dashboard"
    return [sys.executable, "-m", module, f"sqlite:///{store}/optuna.db", UI_HOST, str(port)]


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a server in its own process group, so that its children can be stopped with it."""
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)


def _stop(server: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
