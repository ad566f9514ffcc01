"""Silence around the libraries underneath: their warnings, log lines and progress bars."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

_LOGGERS = ("optimum", "transformers", "diffusers", "torch.onnx", "onnx_ir", "huggingface_hub")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, torch, diffusers, transformers and optimum log nothing below an error."""
    # transformers and diffusers reset their loggers when first imported; these they obey.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    previous = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        for name, level in previous.items():
            logging.getLogger(name).setLevel(level)
