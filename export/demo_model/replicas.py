"""Split every training step between processes of one thread each.

Two threads inside one process wait for each other at every kernel, so that anything else that runs
on the machine costs them many times its share; two processes meet only once a step.
"""

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import Tensor, nn

Arrays = tuple[NDArray[Any], ...]
LossFunction = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


def _tensors(batch: Arrays, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in batch)


def _bind(module: nn.Module, gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient


def _serve(
    connection: Connection,
    module: nn.Module,
    gradients: list[Tensor | None],
    loss_function: LossFunction,
    seed: int,
) -> None:
    """A child's life: a batch in, gradients into shared memory, the loss out."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    _bind(module, gradients)
    while True:
        try:
            batch = connection.recv()
        except EOFError:  # the parent is gone
            return
        for gradient in gradients:
            if gradient is not None:
                gradient.zero_()
        loss = loss_function(module, _tensors(batch, torch.device("cpu")))
        loss.backward()
        connection.send(loss.item())


class Replicas:
    """The module's parameters move to shared memory; `backward` fills their gradients."""

    def __init__(
        self, module: nn.Module, loss_function: LossFunction, processes: int, seed: int
    ) -> None:
        """processes >= 1, this one counted; with 1, nothing is started.

        The module may be on another device than the CPU with one process only.
        """
        self._module, self._loss_function = module, loss_function
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._connections: list[Connection] = []
        self._gradients: list[list[Tensor]] = []
        if processes > 1:
            torch.set_num_threads(1)
            module.share_memory()
        for k in range(1, processes):
            gradients = [
                torch.zeros_like(p).share_memory_() if p.requires_grad else None
                for p in module.parameters()
            ]
            ours, theirs = mp.Pipe()
            mp.get_context("spawn").Process(
                target=_serve,
                args=(theirs, module, gradients, loss_function, seed + k),
                daemon=True,
            ).start()
            theirs.close()
            self._connections.append(ours)
            self._gradients.append([g for g in gradients if g is not None])

    def backward(self, batch: Arrays) -> float:
        """Gradients of the mean loss over the batch (arrays of one first length) → that loss."""
        for parameter in self._trained:
            parameter.grad = None
        parts = 1 + len(self._connections)
        split = list(zip(*(np.array_split(array, parts) for array in batch), strict=True))
        for connection, part in zip(self._connections, split[1:], strict=True):
            connection.send(part)
        loss = self._loss_function(self._module, _tensors(split[0], self._trained[0].device))
        loss.backward()
        total = loss.item()
        if parts > 1:
            for connection, gradients in zip(self._connections, self._gradients, strict=True):
                total += connection.recv()
                own = [p.grad for p in self._trained]
                torch._foreach_add_(own, gradients)
            torch._foreach_div_([p.grad for p in self._trained], parts)
        return total / parts

    def close(self) -> None:
        """End the other processes."""
        for connection in self._connections:
            connection.close()
        self._connections = []
