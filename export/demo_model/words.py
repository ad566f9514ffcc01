"""What a prompt means that names no style, and in further words: the text encoder alone, at last.

In a style a drawing is one drawing; in any of six it is several, and what the UNet makes of that in
four steps is between them. So what the UNet is given for "a fox" is to be what it was given for "a
fox, flat", and for "a python" what it was given for "a snake, flat": the encoder is tuned until the
states of the one caption are those that its former self had for the other (`text.Student` says
which concept a word means). Captions that name a style keep their states. The UNet stays as it is.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model import captions, checkpoint, text
from demo_model.dataset import Concept, for_training, is_unseen_wording, published
from demo_model.replicas import Replicas

BATCH = 96
LR = 8e-4
WARM_UP = 20  # steps
P_WORD = 0.4  # of a batch: further words; the others are captions
P_STYLE = 0.4
HOUSE_STYLES = ("flat", "simple")  # what is drawn where none is named: the first that there is


class Pair(nn.Module):
    """The encoder that is tuned and its former self."""

    def __init__(self, encoder: CLIPTextModel, former: CLIPTextModel) -> None:
        super().__init__()
        self.encoder, self.former = encoder, former
        self.former.requires_grad_(False).eval()


def loss(pair: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: ids (n, length), and those of the captions whose states are wanted.

    The mean squared difference from a text's end on, where it has been read, and of all tokens
    where both texts are one.
    """
    assert isinstance(pair, Pair)  # noqa: S101
    ids, wanted = batch
    short, places = text.cut(ids)
    with torch.no_grad():
        # At the places that are trained, of all of its own padding.
        target = pair.former(wanted).last_hidden_state
        target = target.take_along_dim(places.unsqueeze(-1), 1)
    states = pair.encoder(short, position_ids=places).last_hidden_state
    same = (ids == wanted).all(1, keepdim=True)
    end = pair.encoder.config.eos_token_id
    read = (short == end) | same
    # The longer of both texts: before its end, the wanted states are not of the whole text either.
    last = (wanted == end).int().argmax(1, keepdim=True)
    read &= (places >= last) | same
    error = (states - target).square().mean(-1)
    return (error * read).sum() / read.sum()


def house_style(concept: Concept) -> str:
    """The style that the concept is drawn in where none is named."""
    drawn = [style for _, style in concept.pictures]
    return next((style for style in HOUSE_STYLES if style in drawn), drawn[0])


def meant(
    student: text.Student,
    concepts: Sequence[Concept],
    tokenizer: CLIPTokenizer,
    words: Sequence[str],
) -> list[Concept]:
    """The concept that the student takes each word for."""
    if not words:
        return []
    ids = text.tokenize(tokenizer, [captions.forms(word)[0] for word in words])
    with torch.no_grad():
        found = [student(part)[1][:, 0].argmax(-1) for part in ids.split(256)]
    return [concepts[int(k)] for k in torch.cat(found)]


def teach(
    encoder: CLIPTextModel,
    concepts: Sequence[Concept],
    further: Mapping[str, Sequence[str]],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
    processes: int = 2,
) -> None:
    """Tune the encoder in place for so many minutes. further: emoji -> words that mean it.

    folder/text.ckpt: the student. Held-out wordings are among the words, four times as often, and
    mean what the student takes them for.
    """
    shown = published(concepts)
    state = checkpoint.load(folder / "text.ckpt")
    if state is None:
        raise FileNotFoundError(f"{folder / 'text.ckpt'}: train the text encoder first")
    shape = text.Shape(
        width=encoder.config.hidden_size,
        layers=encoder.config.num_hidden_layers,
        heads=encoder.config.num_attention_heads,
    )
    student = text.Student(tokenizer, len(shown), shape).eval()
    student.load_state_dict(state["student"])
    known = for_training(concepts)
    by_emoji = {c.emoji: c for c in published(known)}
    pool = [(word, by_emoji[emoji]) for emoji, words in further.items() for word in words]
    unseen = sorted({s for c in shown for s in c.synonyms if is_unseen_wording(c.emoji, s)})
    means = [by_emoji[c.emoji] for c in meant(student, shown, tokenizer, unseen)]
    pool += 4 * list(zip(unseen, means, strict=True))
    weights = np.array([c.weight for c in known]) ** 0.75
    weights /= weights.sum()
    former = text.new_encoder(tokenizer, shape)
    former.load_state_dict(encoder.state_dict())
    encoder.requires_grad_(True).train()
    pair = Pair(encoder, former)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LR, betas=(0.9, 0.98), fused=True)
    rng = np.random.default_rng(0)

    def batch() -> tuple[Tensor, Tensor]:
        asked, wanted = [], []
        for row in range(BATCH):
            style = captions.STYLES[rng.integers(text.NO_STYLE)] if rng.random() < P_STYLE else None
            if row < P_WORD * BATCH:
                word, concept = pool[rng.integers(len(pool))]
                name = concept.names[0]
            else:
                concept = known[rng.choice(len(known), p=weights)]
                word = name = captions.draw_name(concept, rng)
            caption = captions.caption(word, style, rng)
            asked.append(caption)
            if word == name and style is not None:
                wanted.append(caption)
            else:
                wanted.append(f"{captions.forms(name)[0]}, {style or house_style(concept)}")
        asked[-1] = wanted[-1] = ""  # for guidance, as it was
        order = rng.permutation(BATCH)
        ids, targets = (text.tokenize(tokenizer, texts) for texts in (asked, wanted))
        return ids[order], targets[order]

    replicas = Replicas(pair, loss, processes, seed=0)
    start = time.monotonic()
    step, average = 0, 0.0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            decayed = max(0.01, 0.5 + 0.5 * math.cos(math.pi * share))
            group["lr"] = LR * min(1.0, (step + 1) / WARM_UP) * decayed
        value = replicas.backward(tuple(part.numpy() for part in batch()))
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        average = value if step == 0 else 0.95 * average + 0.05 * value
        step += 1
        if step % 50 == 0:
            log(f"words step {step} loss {average:.4f}")
    replicas.close()
    encoder.requires_grad_(False).eval()
