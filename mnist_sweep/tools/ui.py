"""MLflow's UI over the store: `python -m mnist_sweep.ui [--store mlruns] [--port 5000] [--dashboard]`."""

import argparse
import errno
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from mnist_sweep.common.errors import UserError

HOST = "127.0.0.1"
END_S = 10
DASHBOARD_PORT = 8080
BEST = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_sweep.ui", description=__doc__)
    parser.add_argument("--store", default=os.environ.get("MNIST_SWEEP_STORE", "mlruns"))
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--dashboard", action="store_true", help="optuna-dashboard beside it")
    arguments = parser.parse_args()
    store = Path(arguments.store).resolve()
    if not (store / "mlflow.db").exists():
        sys.exit(f"error: {store} holds no runs yet; python -m mnist_sweep makes one")
    for end_of_it in (signal.SIGTERM, signal.SIGINT):  # a shell's & leaves the second ignored
        signal.signal(end_of_it, signal.default_int_handler)
    from mnist_sweep.tracking import queries as recorded  # imports mlflow
    from mnist_sweep.tracking import run as tracking

    pages = recorded.first_pages(tracking.store_uri(None, str(store)), BEST)
    servers = []
    try:
        port = free_port(arguments.port)
        servers.append(start(command(store, port)))
        for what, page in pages.items():
            print(f"{what}: http://{HOST}:{port}{page}", flush=True)
        if arguments.dashboard:
            port = free_port(DASHBOARD_PORT)
            servers.append(start(dashboard(store, port)))
            print(f"optuna-dashboard: http://{HOST}:{port}/dashboard", flush=True)
        print("Ctrl-C ends it", flush=True)
        sys.exit(servers[0].wait())
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers:
            end(server)


def command(store: Path, port: int) -> list[str]:
    """One worker: MLflow's default of four takes 2.7 GiB for a UI that one person looks at."""
    flags = {
        "--backend-store-uri": f"sqlite:///{store}/mlflow.db",
        "--artifacts-destination": (store / "artifacts").as_uri(),
        "--host": HOST,
        "--port": str(port),
        "--workers": "1",
    }
    return [sys.executable, "-m", "mlflow", "server", *(x for flag in flags.items() for x in flag)]


def dashboard(store: Path, port: int) -> list[str]:
    """Raises SystemExit where optuna-dashboard is not installed or no sweep ran."""
    if find_spec("optuna_dashboard") is None:
        sys.exit("error: --dashboard needs optuna-dashboard: pip install optuna-dashboard")
    if not (store / "optuna.db").exists():
        sys.exit(f"error: {store} holds no sweep yet; python -m mnist_sweep -m makes one")
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    return [program, f"sqlite:///{store}/optuna.db", "--host", HOST, "--port", str(port)]


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    """In a process group of its own, to be ended with all its children."""
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)


def free_port(wanted: int, host: str = HOST) -> int:
    """`wanted`, or any other where that is taken."""
    for port in (wanted, 0):
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
    raise AssertionError("the system gives out no port")


def end(server: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


if __name__ == "__main__":
    main()
