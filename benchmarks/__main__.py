"""The command line of the benchmark: measures the parts, prints a table, writes it as JSON."""

import argparse
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import benchmarks as benchmark
from benchmarks.measure import Row

# Part -> module, imported when its turn comes: some import torch, which weighs on what is timed.
PARTS = {"startup": "runs", "memory": "runs", "training": "training", "fast99": "fast99"}
PARTS |= {"tracking": "sweeps", "sweep": "sweeps", "report": "sweeps", "peers": "peers"}
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_sweep.benchmark",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default="all",
        choices=["all", *PARTS],
        metavar="part",
        help=f"all, {', '.join(PARTS)}",
    )
    parser.add_argument("--json", type=Path, help="file for the figures; default: in the store")
    parser.add_argument("--quick", action="store_true", help="only to see that all of it works")
    chosen = parser.parse_args()
    path = chosen.json or Path(os.environ.get("MNIST_SWEEP_STORE", "mlruns")) / "benchmark.json"

    logging.basicConfig(format="%(message)s")
    rows: list[Row] = []
    for name in (p for p in PARTS if p in chosen.parts or "all" in chosen.parts):
        part = getattr(import_module(f"mnist_sweep.benchmark.{PARTS[name]}"), name)
        with tempfile.TemporaryDirectory() as folder:
            for row in part(Path(folder).resolve(), quick=chosen.quick):
                logging.warning("%s: %.4g %s", row.what, row.ours, row.unit)
                rows.append(row)
    about = machine()
    show(rows, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "quick": chosen.quick, "rows": [r.as_dict() for r in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {path}")


def machine() -> dict[str, Any]:
    import psutil
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    about = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return {
        "cpu": about.get("model name", platform.processor()),
        "instructions": " ".join(f for f in INSTRUCTIONS if f in about.get("flags", "").split()),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def show(rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    from rich.table import Table

    from mnist_sweep.common.console import as_text

    table = Table(caption=", ".join(f"{k} {v}" for k, v in about.items()))
    for heading in ("what", "ours", "peer", "ratio", "bar", "met?"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.ours:,.4g} {row.unit}",
            "" if row.peer is None else f"{row.peer:,.4g}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.bar is None else f"{row.needs} {row.bar:g}",
            {True: "yes", False: "no", None: ""}[row.met],
        )
    print(as_text(table))


if __name__ == "__main__":
    main()
