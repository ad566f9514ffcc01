"""The text encoder, trained on text alone, before the UNet.

Its last states must tell four things by a linear map each: what a sentence encoder makes of the
text (so that words which no caption has lie near those that some caption has), which concept is
meant, which style and variant, and what the drawing looks like (its latents' principal components).
The last is most of the work of drawing, and learnt here at a tenth of what a step of the UNet
costs; words that only the teacher knows are sent to the drawing that it takes them for. The encoder
is then frozen: the UNet learns what the states mean.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax, softmax
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model import captions, checkpoint, dictionary, sentences
from demo_model.concepts import COLOURS, NUMBERS
from demo_model.dataset import Concept, for_training, is_unseen_wording, published
from demo_model.replicas import Replicas
from demo_model.text_encoder.model import PADS, Shape, cut, new_encoder, tokenize

BATCH = 128
LR = 1.5e-3
WARM_UP = 50  # steps
P_WORD = 0.2  # of a batch: texts that are no captions, known through the teacher alone
P_WORD_STYLED = 0.3  # of those: with a word for a style beside them
# Of the captions. What a thing looks like in each style is by far the most that is to be learnt.
P_STYLE = 0.8
TEMPERATURE = 0.03  # of the teacher's likeness to concepts, as a distribution over them
COMPONENTS = 192  # of the latents: 94 % of their variance
W_PICTURE = 4.0
SAVE_EVERY = 60.0  # seconds
VARIANTS = ("", *COLOURS, *NUMBERS)
NO_STYLE = len(captions.STYLES)


class Student(nn.Module):
    """The encoder and the linear maps that it is trained through."""

    def __init__(self, tokenizer: CLIPTokenizer, concepts: int, shape: Shape) -> None:
        super().__init__()
        self.encoder = new_encoder(tokenizer, shape)
        self.sentence = nn.Linear(shape.width, sentences.WIDTH)
        self.concept = nn.Linear(shape.width, concepts)
        self.style = nn.Linear(shape.width, len(captions.STYLES) + 1)
        self.variant = nn.Linear(shape.width, len(VARIANTS))
        self.picture = nn.Linear(shape.width, COMPONENTS)
        # Random components would be far worse than none.
        nn.init.zeros_(self.picture.weight)
        nn.init.zeros_(self.picture.bias)

    def forward(self, ids: Tensor, places: Tensor | None = None) -> tuple[Tensor, ...]:
        """ids (n, length) -> sentence, concept, style, variant and picture, (n, k, ...) each.

        places (n, length): the tokens' positions, where they are not 0, 1, … The k states are the
        text's end and, with places, the PADS after it.
        """
        hidden = self.encoder(ids, position_ids=places).last_hidden_state
        ends = (ids == self.encoder.config.eos_token_id).int().argmax(1, keepdim=True)
        if places is not None:
            after = torch.arange(PADS + 1, device=ids.device)
            ends = (ends + after).clamp(max=ids.shape[1] - 1)
        states = hidden.take_along_dim(ends.unsqueeze(-1), 1)
        heads = (self.sentence, self.concept, self.style, self.variant, self.picture)
        return tuple(head(states) for head in heads)


def loss(student: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: ids, the teacher's vectors, concept, style and variant (-100: none), the likeness,
    the picture's components and whether there is one.

    likeness (n, concepts): the teacher's distribution over concepts, for texts that are no caption.
    """
    ids, vectors, concept, style, variant, likeness, picture, drawn = batch
    sentence, concepts, styles, variants, seen = student(*cut(ids))
    k = sentence.shape[1]
    told = (1 - cosine_similarity(sentence, vectors[:, None], dim=-1)).mean()

    def named(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        return cross_entropy(
            logits.flatten(0, 1),
            labels.repeat_interleave(k),
            ignore_index=-100,
            label_smoothing=smoothing,
        )

    meant = named(concepts, concept, 0.05)
    alike = -(likeness[:, None] * log_softmax(concepts, -1)).sum(-1).mean()
    looks = named(styles, style) + named(variants, variant)
    # Of the latents' variance, the share that a linear map of the state leaves.
    unlike = (drawn[:, None] * (seen - picture[:, None]).square().sum(-1)).mean()
    return 0.5 * told + 0.5 * meant + alike + 0.3 * looks + W_PICTURE * unlike


class Drawings:
    """What the latents of a drawing look like in a few numbers, by concept, variant and style."""

    def __init__(self, latents: Tensor, concepts: Sequence[Concept]) -> None:
        """latents (n, c, h, w); concepts: as `for_training` leaves them."""
        flat = latents.flatten(1)
        flat = flat - flat.mean(0)
        components = min(COMPONENTS, *flat.shape)
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(flat, components, niter=3)
        coded = torch.zeros(len(flat), COMPONENTS)
        coded[:, :components] = flat @ axes / flat.square().sum(1).mean().sqrt()
        self._by_style: dict[tuple[str, str, int], NDArray[np.float32]] = {}
        self._mean: dict[tuple[str, str], NDArray[np.float32]] = {}
        for c in concepts:
            for index, style in c.pictures:
                key = (c.emoji, c.variant, captions.STYLES.index(style))
                self._by_style[key] = coded[index].numpy()
            self._mean[c.emoji, c.variant] = coded[[i for i, _ in c.pictures]].mean(0).numpy()

    def get(self, concept: Concept, style: int) -> NDArray[np.float32] | None:
        """(COMPONENTS,), or None where it was not drawn so; of no style: the styles' mean."""
        if style == NO_STYLE:
            return self._mean[concept.emoji, concept.variant]
        return self._by_style.get((concept.emoji, concept.variant, style))


Likeness = Callable[[Sequence[str], Tensor], Tensor]


class Texts:
    """Batches of captions and of other texts, with what the student must tell about each."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        teacher: Callable[[Sequence[str]], Tensor],
        likeness: Likeness,
        words: Sequence[str],
        drawings: Drawings,
        rng: np.random.Generator,
    ) -> None:
        """concepts: all of them; what is held out is taken out here. words: any further texts.

        likeness: words and the teacher's vectors of them -> how much each means each concept.
        """
        self._rng = rng
        self._drawings = drawings
        shown = published(concepts)
        self._index = {c.emoji: k for k, c in enumerate(shown)}
        self._published = for_training(shown)
        self._concepts = for_training(concepts)
        weights = np.array([c.weight for c in self._concepts])
        self._p = weights / weights.sum()
        # Held-out wordings are texts like any others, without a concept.
        unseen = {s for c in concepts for s in c.synonyms if is_unseen_wording(c.emoji, s)}
        self._held_out = unseen
        self._words = sorted(unseen) * 4 + sorted({*words} - unseen)
        names = sorted({n for c in self._concepts for n in (*c.names, *c.synonyms)})
        # The teacher is asked about the thing alone: articles, styles and frames change nothing.
        self._vectors = dict(zip(names, teacher(names).numpy(), strict=True))
        told = teacher(self._words)
        self._told = told.numpy()
        best = likeness(self._words, told)
        values, which = best.topk(min(16, best.shape[1]))
        self._near = softmax(values / TEMPERATURE, -1), which

    def meanings(self, least: float = 0.5) -> dict[str, list[str]]:
        """Emoji -> the further texts that mean it with so much probability; none held out."""
        found: dict[str, list[str]] = {}
        unseen = {s for c in self._published for s in c.synonyms} | self._held_out
        for word, values, which in zip(self._words, *self._near, strict=True):
            if values[0] >= least and word not in unseen:
                emoji = self._published[int(which[0])].emoji
                found.setdefault(emoji, []).append(word)
        return found

    def batch(self, tokenizer: CLIPTokenizer, n: int) -> tuple[NDArray[np.generic], ...]:
        """What `loss` takes, as arrays."""
        rng = self._rng
        texts: list[str] = []
        vectors = np.empty((n, sentences.WIDTH), np.float32)
        labels = np.full((3, n), -100)
        likeness = torch.zeros(n, len(self._index))
        pictures, drawn = np.zeros((n, COMPONENTS), np.float32), np.zeros(n, np.float32)
        others = round(P_WORD * n)
        chosen = rng.choice(len(self._concepts), n, p=self._p)
        for row in range(n):
            word = row < others
            styled = rng.random() < (P_WORD_STYLED if word else P_STYLE)
            style = int(rng.integers(NO_STYLE)) if styled else NO_STYLE
            if word:
                k = int(rng.integers(len(self._words)))
                noun, vectors[row] = self._words[k], self._told[k]
                probabilities, which = self._near[0][k], self._near[1][k]
                likeness[row, which] = probabilities
                sharp = probabilities.numpy().astype(float) ** 2
                place = rng.choice(len(sharp), p=sharp / sharp.sum())
                concept = self._published[int(which[place])]
                labels[1:, row] = style, 0
            else:
                concept = self._concepts[chosen[row]]
                noun = captions.draw_name(concept, rng)
                vectors[row] = self._vectors[noun]
                labels[:, row] = self._index[concept.emoji], style, VARIANTS.index(concept.variant)
            name = None if style == NO_STYLE else captions.STYLES[style]
            texts.append(captions.caption(noun, name, rng))
            looks = self._drawings.get(concept, style)
            if looks is not None:
                pictures[row], drawn[row] = looks, 1
        # Whichever process gets which rows, each gets captions and words alike.
        order = rng.permutation(n)
        ids = tokenize(tokenizer, [texts[k] for k in order]).numpy()
        shuffled = likeness[torch.from_numpy(order)].numpy()
        return ids, vectors[order], *labels[:, order], shuffled, pictures[order], drawn[order]


def train(
    concepts: Sequence[Concept],
    latents: Tensor,
    tokenizer: CLIPTokenizer,
    tarballs: Path,
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
    processes: int = 2,
    shape: Shape | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> None:
    """Train for so many minutes of wall clock in all, resuming folder/text.ckpt; write words.json.

    latents (n, c, h, w): of the concepts' pictures. `start`: an encoder's weights to go on from.
    """
    student = Student(tokenizer, len(published(concepts)), shape or Shape())
    if start is not None:
        student.encoder.load_state_dict(start)
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
    knowledge = dictionary.Knowledge(published(concepts), tarballs, teacher)
    texts = Texts(
        concepts,
        teacher,
        knowledge.likeness,
        knowledge.words,
        Drawings(latents, for_training(concepts)),
        np.random.default_rng(step),
    )
    meanings = texts.meanings()
    log(f"text: {len(knowledge.words)} words, {sum(map(len, meanings.values()))} clear")
    (folder / "words.json").write_text(json.dumps(meanings, ensure_ascii=False))

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
        right = student(ids)[1][:, 0].argmax(-1) == torch.tensor([k for _, k in pairs])
        found[what] = float(right.float().mean())
    return found
