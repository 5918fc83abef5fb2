"""Which device and which precision a model runs in when the user does not say."""

from __future__ import annotations

import torch

from indextts2.errors import UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def available_devices() -> tuple[str, ...]:
    """Device types that can be used here, the preferred one first (CUDA, XPU, MPS, CPU; spec 01 section 4)."""
    accelerators = [
        ("cuda", torch.cuda.is_available()),
        ("xpu", torch.xpu.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ]
    return (*(name for name, there in accelerators if there), "cpu")


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best one for None and "auto".

    Raises:
        UsageError: the name is not a device, or the device is not there.
    """
    devices = available_devices()
    if name is None or name == "auto":
        return torch.device(devices[0])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is not a device; available here: {', '.join(devices)}") from error
    if device.type not in (*devices, "meta"):
        raise UsageError(f"device {name} is not available; available here: {', '.join(devices)}")
    return device


def choose_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The compute dtype of the GPT, the one module that may run in half precision; float32 unless asked for.

    Raises:
        UsageError: the name is unknown, or float16 is asked for on the CPU, where it is slower and less exact.
    """
    if name is None or name == "auto":
        return torch.float32
    dtype = DTYPES.get(name) if isinstance(name, str) else name
    if dtype not in DTYPES.values() or dtype is None:
        raise UsageError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    if dtype is torch.float16 and device.type == "cpu":
        raise UsageError("float16 is not supported on the CPU; use float32 or bfloat16")
    return dtype


def compute_in_float32(device: torch.device) -> None:
    """Let float32 convolutions on CUDA devices be float32, for the whole process.

    By default cuDNN rounds their factors to 10 bits (TF32), while all networks but the GPT are float32 (spec 01
    section 1.2). `torch.backends.cudnn.allow_tf32 = True` after loading turns that back.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
