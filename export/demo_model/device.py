"""Where training runs, and in which precision."""

from contextlib import AbstractContextManager

import torch
from torch import nn

# Convolutions are quickest with the channels of a pixel side by side, on CPUs and GPUs alike.
LAYOUT = torch.channels_last


def choose() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(module: nn.Module, processes: int) -> int:
    """Move the module to where training runs; return how many processes can train it there."""
    where = choose()
    module.to(where)
    return 1 if where.type == "cuda" else processes


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for the products where the device multiplies it; float32 elsewhere.

    Without AVX-512's or AMX's bfloat16 a CPU emulates it, at a hundredth of float32's rate.
    """
    fast = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
