"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words that were learned, as new rows of a
text encoder's embedding table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgediff.bundle.folder import hash_file
from edgediff.bundle.manifest import MergedEmbedding
from edgediff.errors import ExportError, InputError
from edgediff_export.source.file_kinds import misplaced
from edgediff_export.source.safetensors_file import open_tensors, split_argument

# What stable-diffusion-webui calls the vectors, whatever the token.
_UNNAMED = "emb_params"
# SDXL's files hold vectors for both encoders.
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A .safetensors file of one textual inversion, and what prompts are to call it: None leaves
    it to the file, or to its name."""

    path: Path
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token or self.token != self.token.strip()):
            raise InputError(
                f"--embedding {self.path}: TOKEN is {self.token!r}: give a word without spaces"
                " around it"
            )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A textual inversion that fits the pipeline: its token, and text encoder → vectors (n, width),
    torch tensors."""

    path: Path
    token: str
    vectors: Mapping[str, Any]

    @property
    def tokens(self) -> tuple[str, ...]:
        """A token for each vector, named as diffusers names them."""
        count = len(next(iter(self.vectors.values())))
        return (self.token, *(f"{self.token}_{i}" for i in range(1, count)))

    def merge(self, component: str, module: Any, ids: Sequence[int]) -> None:
        """Write the vectors into the rows `ids` of a text encoder's table, made longer if need
        be."""
        import torch

        rows = self.vectors[component]
        old = module.get_input_embeddings().weight
        weight = old.new_zeros((max(len(old), max(ids) + 1), old.shape[1]))
        weight[: len(old)] = old
        weight[list(ids)] = rows.to(old.dtype)
        table = torch.nn.Embedding(len(weight), weight.shape[1], _weight=weight)
        module.set_input_embeddings(table.requires_grad_(False))
        module.config.vocab_size = len(weight)

    def record(self) -> MergedEmbedding:
        """What bundle.json says of it."""
        return MergedEmbedding(file=self.path.name, token=self.token, sha256=hash_file(self.path))


def parse_embedding(text: str) -> Embedding:
    """FILE[:TOKEN] as the command line has it. Raises InputError."""
    path, token = split_argument(text)
    return Embedding(path=path, token=token)


def learn(embedding: Embedding, widths: Mapping[str, int]) -> Learned:
    """Read a textual inversion, in diffusers' form ({token: vectors}), stable-diffusion-webui's
    ({"emb_params": vectors}) or SDXL's ({"clip_l": vectors, "clip_g": vectors}).

    widths: text encoder → values in a row of its table.

    Raises ExportError if there is no such file, or if it is of another form, or made for other
    text encoders."""
    where = f"--embedding {embedding.path}"
    with open_tensors(embedding.path, flag="--embedding") as tensors:
        keys = sorted(tensors.keys())
        name = embedding.path.stem
        if set(keys) <= _ENCODERS.keys():
            encoders = {_ENCODERS[key]: key for key in keys}
        elif len(keys) == 1:
            encoders = {"text_encoder": keys[0]}
            name = name if keys[0] == _UNNAMED else keys[0]
        else:
            what = misplaced(dict.fromkeys(keys, ()), "a textual inversion")
            raise ExportError(
                f"{where}: {what}"
                if what
                else f"{where}: holds {len(keys)} tensors, such as {' and '.join(keys[:2])},"
                " expected those of one token: give a file for each token"
            )
        if encoders.keys() != widths.keys():
            raise ExportError(
                f"{where}: has vectors for {' and '.join(sorted(encoders)) or 'nothing'}, this"
                f" pipeline has {' and '.join(sorted(widths))}: give an embedding of this family"
            )
        vectors = {
            encoder: _rows(where, tensors.get_tensor(key).float(), widths[encoder])
            for encoder, key in encoders.items()
        }
    counts = [len(rows) for rows in vectors.values()]
    if len(set(counts)) > 1:
        raise ExportError(
            f"{where}: has {' and '.join(map(str, counts))} vectors for the two text encoders,"
            " expected as many for both: download it again"
        )
    named = replace(embedding, token=embedding.token or name)
    return Learned(path=named.path, token=named.token or "", vectors=vectors)


def _rows(where: str, rows: Any, width: int) -> Any:
    """Vectors (n, width), of one vector (width,) or of several."""
    import torch

    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or len(rows) == 0:
        raise ExportError(f"{where}: has shape {tuple(rows.shape)}, expected vectors (n, {width})")
    if rows.shape[1] != width:
        raise ExportError(
            f"{where}: its vectors have {rows.shape[1]} values, this text encoder's {width}: give"
            " an embedding of this family"
        )
    if not torch.isfinite(rows).all():
        raise ExportError(f"{where}: holds values that are not finite: download it again")
    return rows
