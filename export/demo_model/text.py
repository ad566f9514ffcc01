"""The text encoder, trained on text alone, before any picture.

Its last token's state must tell three things by a linear map each: what a sentence encoder makes of
the text (so that words which no caption has lie near those that some caption has), which concept is
meant, and which style and variant. It is then frozen: the UNet learns what the states mean, and
words that only the sentence encoder knew keep their place.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, softmax
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_model import captions, checkpoint, sentences
from demo_model.concepts import COLOURS, NUMBERS
from demo_model.dataset import Concept, for_training, is_unseen_wording, published
from demo_model.replicas import Replicas

BATCH = 192
LR = 2e-3
WARM_UP = 100  # steps
P_WORD = 0.3  # of a batch: texts that are no captions, known through the teacher alone
TEMPERATURE = 0.04  # of the teacher's likeness to concepts, as a distribution over them
SAVE_EVERY = 60.0  # seconds
VARIANTS = ("", *COLOURS, *NUMBERS)
NO_STYLE = len(captions.STYLES)


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


class Student(nn.Module):
    """The encoder and the linear maps that it is trained through."""

    def __init__(self, tokenizer: CLIPTokenizer, concepts: int, shape: Shape) -> None:
        super().__init__()
        self.encoder = new_encoder(tokenizer, shape)
        self.sentence = nn.Linear(shape.width, sentences.WIDTH)
        self.concept = nn.Linear(shape.width, concepts)
        self.style = nn.Linear(shape.width, len(captions.STYLES) + 1)
        self.variant = nn.Linear(shape.width, len(VARIANTS))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ids (n, length) -> sentence, concept, style and variant, (n, ...) each."""
        pooled = self.encoder(ids).pooler_output
        return self.sentence(pooled), self.concept(pooled), self.style(pooled), self.variant(pooled)


def loss(student: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: ids, the teacher's vectors, concept, style and variant (-100: none), and the likeness.

    likeness (n, concepts): the teacher's distribution over concepts, for texts that are no caption.
    """
    ids, vectors, concept, style, variant, likeness = batch
    # Texts are short; what is right of the last one's end changes nothing to its left.
    longest = int((ids != ids[:, -1:]).sum(1).max()) + 1
    sentence, concepts, styles, variants = student(ids[:, :longest])
    told = (1 - cosine_similarity(sentence, vectors)).mean()
    meant = cross_entropy(concepts, concept, ignore_index=-100, label_smoothing=0.05)
    alike = -(likeness * log_softmax(concepts, -1)).sum(-1).mean()
    looks = cross_entropy(styles, style, ignore_index=-100) + cross_entropy(
        variants, variant, ignore_index=-100
    )
    return 2 * told + meant + alike + 0.5 * looks


class Texts:
    """Batches of captions and of other texts, with what the student must tell about each."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        teacher: Callable[[Sequence[str]], Tensor],
        words: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        """concepts: all of them; what is held out is taken out here. words: any further texts."""
        self._rng = rng
        self._index = {c.emoji: k for k, c in enumerate(published(concepts))}
        self._concepts = for_training(concepts)
        weights = np.sqrt([c.weight for c in self._concepts])
        self._p = weights / weights.sum()
        # Held-out wordings are texts like any others, without a concept.
        unseen = {s for c in concepts for s in c.synonyms if is_unseen_wording(c.emoji, s)}
        self._words = sorted(unseen) * 4 + list(words)
        names = [(n, self._index[c.emoji]) for c in self._concepts for n in (*c.names, *c.synonyms)]
        vectors, places = teacher([n for n, _ in names]), torch.tensor([k for _, k in names])
        # The teacher is asked about the thing alone: articles, styles and frames change nothing.
        self._vectors = {n: v for (n, _), v in zip(names, vectors.numpy(), strict=True)}
        told = teacher(self._words)
        self._told = told.numpy()
        near = told @ vectors.T
        best = torch.full((len(self._words), len(self._index)), -1.0)
        best.scatter_reduce_(1, places.expand(len(near), -1), near, "amax")
        values, which = best.topk(min(16, best.shape[1]))
        self._near = softmax(values / TEMPERATURE, -1), which

    def batch(self, tokenizer: CLIPTokenizer, n: int) -> tuple[NDArray[np.generic], ...]:
        """What `loss` takes, as arrays."""
        rng = self._rng
        texts: list[str] = []
        vectors = np.empty((n, sentences.WIDTH), np.float32)
        labels = np.full((3, n), -100)
        likeness = torch.zeros(n, len(self._index))
        others = round(P_WORD * n)
        drawn = rng.choice(len(self._concepts), n, p=self._p)
        for row in range(n):
            if row < others:
                k = int(rng.integers(len(self._words)))
                word = self._words[k]
                texts.append(captions.frame(captions.forms(word)[rng.integers(2)], rng))
                vectors[row] = self._told[k]
                likeness[row, self._near[1][k]] = self._near[0][k]
            else:
                concept = self._concepts[drawn[row]]
                style = int(rng.integers(NO_STYLE)) if rng.random() < captions.P_STYLE else NO_STYLE
                name = None if style == NO_STYLE else captions.STYLES[style]
                noun = captions.draw_name(concept, rng)
                texts.append(captions.caption(noun, name, rng))
                vectors[row] = self._vectors[noun]
                labels[:, row] = self._index[concept.emoji], style, VARIANTS.index(concept.variant)
        # Whichever process gets which rows, each gets captions and words alike.
        order = rng.permutation(n)
        ids = tokenize(tokenizer, [texts[k] for k in order]).numpy()
        return ids, vectors[order], *labels[:, order], likeness[torch.from_numpy(order)].numpy()


def train(
    concepts: Sequence[Concept],
    tokenizer: CLIPTokenizer,
    tarballs: Path,
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
    processes: int = 2,
    shape: Shape | None = None,
) -> None:
    """Train for so many minutes of wall clock in all, resuming folder/text.ckpt."""
    student = Student(tokenizer, len(published(concepts)), shape or Shape())
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step, spent = 0, 0.0
    state = checkpoint.load(folder / "text.ckpt")
    if state is not None:
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    budget = minutes * 60
    if spent >= budget:
        return
    teacher = sentences.Sentences(tarballs)
    texts = Texts(concepts, teacher, teacher.words, np.random.default_rng(step))
    log(f"text: {len(teacher.words)} words")

    def save() -> None:
        checkpoint.save(
            folder / "text.ckpt",
            {
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": spent,
            },
        )

    student.train()
    replicas = Replicas(student, loss, processes, seed=step)
    last = saved = time.monotonic()
    average: float | None = None
    while spent < budget:
        decayed = 0.5 + 0.5 * math.cos(math.pi * min(1.0, spent / budget))
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARM_UP) * max(0.01, decayed)
        value = replicas.backward(texts.batch(tokenizer, BATCH))
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        spent, last = spent + now - last, now
        average = value if average is None else 0.98 * average + 0.02 * value
        if step % 50 == 0:
            log(f"text step {step} loss {average:.4f} {spent:.0f} s")
        if now - saved > SAVE_EVERY:
            save()
            saved = now
    save()
    replicas.close()


def load(folder: Path, tokenizer: CLIPTokenizer, shape: Shape | None = None) -> CLIPTextModel:
    """The trained encoder alone, frozen."""
    state = checkpoint.load(folder / "text.ckpt")
    if state is None:
        raise FileNotFoundError(f"{folder / 'text.ckpt'}: train the text encoder first")
    encoder = new_encoder(tokenizer, shape or Shape())
    prefix = "encoder."
    encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["student"].items() if k.startswith(prefix)}
    )
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def recall(
    concepts: Sequence[Concept], tokenizer: CLIPTokenizer, folder: Path, shape: Shape | None = None
) -> dict[str, float]:
    """How often the encoder's own concept map is right: an upper bound for any picture."""
    state = checkpoint.load(folder / "text.ckpt")
    if state is None:
        raise FileNotFoundError(f"{folder / 'text.ckpt'}: train the text encoder first")
    shown = published(concepts)
    student = Student(tokenizer, len(shown), shape or Shape()).eval()
    student.load_state_dict(state["student"])
    asked = {
        "names, the 300": [(c.names[0], k) for k, c in enumerate(shown) if c.is_common],
        "names": [(c.names[0], k) for k, c in enumerate(shown)],
        "unseen wordings, the 300": [
            (s, k)
            for k, c in enumerate(shown)
            if c.is_common
            for s in c.synonyms
            if is_unseen_wording(c.emoji, s)
        ],
    }
    found = {}
    for what, pairs in asked.items():
        if not pairs:
            continue
        ids = tokenize(tokenizer, [captions.forms(name)[0] for name, _ in pairs])
        right = student(ids)[1].argmax(-1) == torch.tensor([k for _, k in pairs])
        found[what] = float(right.float().mean())
    return found
