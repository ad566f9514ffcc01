"""Buffers for a graph's inputs and outputs on the device that runs it (I/O binding)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgediff.arrays import AnyArray


class Device(NamedTuple):
    """The device that holds the buffers: onnxruntime's name for its kind ("cuda", "cpu"), and its
    number."""

    kind: str
    number: int


class Binding:
    """Buffers for one set of shapes. They keep their addresses, so that a captured CUDA graph,
    which reads and writes them, can be replayed.

    session: an onnxruntime.InferenceSession. values: onnxruntime.OrtValue, which makes buffers.
    inputs: arrays with the shapes and dtypes of every run. outputs: the names of the outputs to
    return. captures: the number of the CUDA graph to capture these buffers in; None = none."""

    def __init__(
        self,
        session: Any,
        values: Any,
        device: Device,
        inputs: Mapping[str, AnyArray],
        outputs: Sequence[str],
        *,
        captures: int | None = None,
    ) -> None:
        self._session = session
        self._captures = captures
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._unchanging: dict[str, AnyArray] = {}
        for name, array in inputs.items():
            buffer = values.ortvalue_from_shape_and_type(array.shape, array.dtype, *device)
            self._binding.bind_ortvalue_input(name, buffer)
            self._inputs[name] = buffer
        self._output_names = list(outputs)
        self._outputs: list[Any] = []
        for name in self._output_names:
            self._binding.bind_output(name, *device)

    @property
    def graph(self) -> int | None:
        """The CUDA graph that the next run captures or replays. None for the first run, in which
        onnxruntime allocates the outputs' buffers, because only it knows their shapes."""
        return self._captures if self._outputs else None

    def run(self, inputs: Mapping[str, AnyArray], options: Any) -> dict[str, AnyArray]:
        """Copy the inputs in, run, and copy the outputs out. options: RunOptions.

        A read-only array that was also given in the last run is not copied again, so that inputs
        that stay the same for a whole image are copied to the device once."""
        for name, array in inputs.items():
            if array is self._unchanging.get(name):
                continue
            self._unchanging.pop(name, None)
            self._inputs[name].update_inplace(array)
            if not array.flags.writeable:
                self._unchanging[name] = array
        self._session.run_with_iobinding(self._binding, options)
        if not self._outputs:
            self._outputs = self._binding.get_outputs()
            for name, buffer in zip(self._output_names, self._outputs, strict=True):
                self._binding.bind_ortvalue_output(name, buffer)
        # Copied: on the CPU this would be the buffer itself.
        values = zip(self._output_names, self._outputs, strict=True)
        return {name: np.array(buffer.numpy()) for name, buffer in values}
