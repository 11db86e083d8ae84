"""The command line of the benchmark: measures the parts, prints a table, writes it as JSON."""

import argparse
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_sweep import benchmark
from mnist_sweep.benchmark.measure import FULL, QUICK, Row, Sizes

PARTS = ("startup", "memory", "training", "fast99", "tracking", "sweep", "report", "peers")


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
    sizes = QUICK if chosen.quick else FULL
    path = chosen.json or Path(os.environ.get("MNIST_SWEEP_STORE", "mlruns")) / "benchmark.json"

    logging.basicConfig(format="%(message)s")
    rows: list[Row] = []
    for name in PARTS:
        if "all" in chosen.parts or name in chosen.parts:
            with tempfile.TemporaryDirectory() as folder:
                for row in part(name)(sizes, Path(folder).resolve()):
                    logging.warning("%s: %.4g %s", row.what, row.ours, row.unit)
                    rows.append(row)
    described = machine()
    show(rows, described)
    save(path, {"machine": described, "quick": chosen.quick, "rows": [r.as_dict() for r in rows]})
    print(f"written to {path}")


def part(name: str) -> Callable[[Sizes, Path], Iterator[Row]]:
    if name == "training":
        from mnist_sweep.benchmark.training import training  # imports torch and torchvision

        return training
    if name == "fast99":
        from mnist_sweep.benchmark.fast99 import fast99

        return fast99
    if name == "peers":
        from mnist_sweep.benchmark.peers import peers

        return peers
    from mnist_sweep.benchmark import reports, runs, sweeps

    return {
        "startup": runs.startup,
        "memory": runs.memory,
        "tracking": runs.tracking,
        "sweep": sweeps.sweeps,
        "report": reports.reports,
    }[name]


def machine() -> dict[str, Any]:
    import psutil
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    about = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    has = about.get("flags", "").split()
    return {
        "cpu": about.get("model name", platform.processor()),
        "instructions": " ".join(f for f in ("avx2", "avx512f", "amx_bf16") if f in has),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def show(rows: Sequence[Row], described: Mapping[str, Any]) -> None:
    from rich.table import Table

    from mnist_sweep.console import as_text

    table = Table(caption=", ".join(f"{k} {v}" for k, v in described.items()))
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


def save(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
