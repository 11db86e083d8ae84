"""MLflow's UI over the store: `python -m mnist_sweep.ui [--store mlruns] [--port 5000]`."""

import argparse
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

HOST = "127.0.0.1"
END_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_sweep.ui", description=__doc__)
    parser.add_argument("--store", default=os.environ.get("MNIST_SWEEP_STORE", "mlruns"))
    parser.add_argument("--port", type=int, default=5000)
    arguments = parser.parse_args()
    store = Path(arguments.store).resolve()
    if not (store / "mlflow.db").exists():
        sys.exit(f"error: {store} holds no runs yet; python -m mnist_sweep makes one")
    port = free_port(arguments.port)
    server = subprocess.Popen(command(store, port), env=environment(), start_new_session=True)
    print(f"all runs: http://{HOST}:{port}/#/experiments  (Ctrl-C ends it)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(server.wait())
    except KeyboardInterrupt:
        _end(server)


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


def environment() -> dict[str, str]:
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**os.environ, **quiet}


def free_port(wanted: int) -> int:
    """`wanted`, or any other where that is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                print(f"port {wanted} is taken, using another", flush=True)
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("the system gives out no port")


def _end(server: "subprocess.Popen[bytes]") -> None:
    """The server and its children, which are a process group of their own."""
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    main()
