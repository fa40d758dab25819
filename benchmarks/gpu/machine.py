"""What the machine is, and what its products and copies reach."""

import platform
import subprocess

import torch

from benchmarks.gpu.jobs import Jobs, Row
from benchmarks.gpu.setting import Setting
from benchmarks.timing import side_by_side
from dualscore.cores import own_cores
from dualscore.devices import allow_tf32


def jobs(setting: Setting) -> Jobs:
    """Names and versions; rates of products and copies."""
    return {
        "machine": lambda: machine(setting),
        "product fp32": lambda: product(setting, torch.float32),
        "product TF32": lambda: product(setting, torch.float32, tf32=True),
        "product bf16": lambda: product(setting, torch.bfloat16),
        "convolution bf16, channels last": lambda: convolution(setting),
        "copy": lambda: copy(setting),
    }


def machine(setting: Setting) -> Row:
    """The device by its name, and the versions of what drives it."""
    row: Row = {
        "device": platform.processor() or platform.machine() or "CPU",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "cores": own_cores(),
    }
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        row |= {
            "device": properties.name,
            "GPUs": torch.cuda.device_count(),
            "memory, GB": round(properties.total_memory / 1e9, 1),
            "driver": _driver(),
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),
        }
    return row


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.strip().splitlines()[0] if found.strip() else "unknown"


def product(setting: Setting, dtype: torch.dtype, tf32: bool = False) -> Row:
    """A large matrix product of random numbers."""
    side = 256 if setting.toy else 8192
    a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    allow_tf32(tf32)
    try:
        seconds = side_by_side({"product": lambda: a @ b}, setting.repeats)["product"].median
    finally:
        allow_tf32(False)
    return {"TFLOP/s": 2 * side**3 / seconds / 1e12}


def convolution(setting: Setting) -> Row:
    """The network's commonest convolution alone: 64 channels at the finest scale, batch 128."""
    channels, side, batch = (8, 16, 8) if setting.toy else (64, 64, 128)
    like = {"device": setting.device, "dtype": torch.bfloat16}
    x = torch.randn(batch, channels, side, side, **like).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, **like).to(memory_format=torch.channels_last)

    def several() -> None:
        for _ in range(10):
            torch.nn.functional.conv2d(x, weight, padding=1)

    seconds = side_by_side({"convolution": several}, setting.repeats)["convolution"].median / 10
    return {"TFLOP/s": 2 * 9 * channels**2 * side**2 * batch / seconds / 1e12}


def copy(setting: Setting) -> Row:
    """Bytes read and written a second in the device's memory, and bytes a second from pinned memory to it."""
    numbers = 2**16 if setting.toy else 2**29
    source = torch.empty(numbers, device=setting.device)
    target = torch.empty_like(source)
    pinned = torch.empty(numbers // 4, pin_memory=setting.device.type == "cuda")
    jobs = {
        "device": lambda: target.copy_(source),
        "host": lambda: target[: numbers // 4].copy_(pinned, non_blocking=True),
    }
    times = side_by_side(jobs, setting.repeats)
    return {
        "in memory, GB/s": 2 * source.nbytes / times["device"].median / 1e9,
        "from the host, GB/s": pinned.nbytes / times["host"].median / 1e9,
    }
