"""Why tests marked `gpu` cannot run on this machine."""

import shutil
from functools import cache
from pathlib import Path


@cache
def missing_gpu() -> str | None:
    """None where there is a CUDA device. torch is imported only where there is an NVIDIA driver."""
    if not shutil.which("nvidia-smi") and not Path("/dev/nvidiactl").exists():
        return "needs a CUDA device: this machine has no NVIDIA driver"
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device: torch finds none"
