"""The text encoder: CLIP's, a few layers of it (Radford et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PADS = 3  # states after the text's end that must tell the same


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The text encoder's sizes; the defaults are those of the model that ships."""

    width: int = 192
    layers: int = 3
    heads: int = 3


def new_encoder(tokenizer: CLIPTokenizer, shape: Shape) -> CLIPTextModel:
    """Untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=4 * shape.width,
            projection_dim=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """(n, length) int64, padded and cut to the tokenizer's length as the pipeline does it."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = encoded.input_ids
    return ids


def cut(ids: Tensor) -> tuple[Tensor, Tensor]:
    """ids (n, length) -> no more columns than the longest text and PADS need, and their places.

    Padding is attended like any token, and the UNet sees all of it. Instead of all, a few at
    places drawn at random are trained: what is right of a token changes nothing for it.
    """
    n, length = ids.shape
    where = ids.device
    ends = (ids == ids[:, -1:]).int().argmax(1, keepdim=True)
    columns = min(length, int(ends.max()) + 1 + PADS)
    # The first columns after a text's end get the least of so many numbers beyond it.
    drawn = torch.rand(n, length, device=where)
    drawn = drawn.masked_fill(torch.arange(length, device=where) <= ends, -1.0)
    kept = drawn.argsort(1, descending=True)[:, : columns - 1]
    order = torch.where(drawn.gather(1, kept) < 0, length, kept).sort(1).values
    places = torch.arange(columns, device=where).expand(n, -1).clone()
    after = torch.arange(columns, device=where) - ends - 1  # of a column: how many pads before it
    beyond = order.gather(1, after.clamp(0, order.shape[1] - 1)).clamp(max=length - 1)
    return ids[:, :columns], torch.where(after >= 0, beyond, places)
