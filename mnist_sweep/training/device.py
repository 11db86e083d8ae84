"""The device and the precision of a run."""

import platform

import torch

from mnist_sweep.common.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the device with this name; `auto` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the name is invalid, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdigit())):
        raise UserError(f"device={name}: expected auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: torch can use {torch.cuda.device_count()} CUDA devices of this machine; "
            "device=auto picks one that exists"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            f"device={name}: this machine has no MPS; device=auto picks one that exists"
        )
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, or None for float32. The weights are float32 in any case.

    `auto` picks bf16 on devices with instructions for it (a GPU, a CPU with AMX or AVX512-BF16) and
    float32 on others.

    Raises:
        UserError: fp16 on a CPU.
    """
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    if precision == "fp16" and device.type == "cpu":
        raise UserError("trainer.precision=fp16 needs a GPU; a CPU supports fp32 and bf16")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def describe(device: torch.device) -> str:
    """Return the device with the GPU's name, or with the number of CPU threads, for the log."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads, {platform.machine()})"
