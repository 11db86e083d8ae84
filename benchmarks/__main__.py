"""Command line of the benchmarks: run the parts, print a table, write it as JSON."""

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

import benchmarks
from benchmarks.measure import Row

# Part -> module, imported when the part runs: torch in this process would slow down earlier parts.
PARTS = {"startup": "run_cost", "memory": "run_cost", "training": "training_speed"}
PARTS |= {"fast99": "fast99", "tracking": "sweep_cost", "sweep": "sweep_cost"}
PARTS |= {"engine": "sweep_cost"}
PARTS |= {"report": "sweep_cost", "search": "search_quality", "peers": "peers"}
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default="all",
        choices=["all", *PARTS],
        metavar="part",
        help=f"all (default), {', '.join(PARTS)}",
    )
    parser.add_argument("--json", type=Path, help="output file; default: benchmark.json in mlruns/")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to test the benchmarks")
    arguments = parser.parse_args()
    store = Path(os.environ.get("MNIST_SWEEP_STORE", "mlruns"))
    path = arguments.json or store / "benchmark.json"

    logging.basicConfig(format="%(message)s")
    rows: list[Row] = []
    for name in PARTS:
        if name not in arguments.parts and "all" not in arguments.parts:
            continue
        part = getattr(import_module(f"benchmarks.{PARTS[name]}"), name)
        with tempfile.TemporaryDirectory() as folder:
            for row in part(Path(folder).resolve(), quick=arguments.quick):
                logging.warning("%s: %.4g %s", row.name, row.ours, row.unit)
                rows.append(row)
    machine = describe_machine()
    print(as_table(rows, machine))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine,
        "quick": arguments.quick,
        "rows": [row.as_dict() for row in rows],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {path}")


def describe_machine() -> dict[str, Any]:
    import psutil
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in (ln.partition(":") for ln in lines)}
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "instructions": " ".join(f for f in CPU_FLAGS if f in cpu.get("flags", "").split()),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def as_table(rows: Sequence[Row], machine: Mapping[str, Any]) -> str:
    from rich.table import Table

    from mnist_sweep.common.console import as_text

    table = Table(caption=", ".join(f"{key} {value}" for key, value in machine.items()))
    for heading in ("measurement", "ours", "peer", "ratio", "target", "met?"):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for row in rows:
        table.add_row(
            row.name,
            as_figure(row),
            "" if row.peer is None else f"{row.peer:,.4g}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.target is None else f"{row.bound} {row.target:g}",
            {True: "yes", False: "no", None: ""}[row.met],
        )
    return as_text(table)


def as_figure(row: Row) -> str:
    if row.interval is None:
        return f"{row.ours:,.4g} {row.unit}"
    low, high = row.interval
    return f"{row.ours:,.4g} ({low:,.4g} to {high:,.4g}) {row.unit}"


if __name__ == "__main__":
    main()
