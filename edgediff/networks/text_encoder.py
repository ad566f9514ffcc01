"""Prompts to the denoiser's conditioning, through the bundle's text encoders."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgediff.backend.run_stage import RunStage
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec
from edgediff.bundle.tensor_names import (
    ATTENTION_MASK,
    ENCODER_ATTENTION_MASK,
    GUIDANCE_EMBEDDING,
    INPUT_IDS,
    POOLED_STATES,
    TIME_IDS,
    clip_skip_output,
)
from edgediff.errors import BundleError, InputError
from edgediff.sampling.denoiser import Conditioning
from edgediff.sampling.guidance import Guidance
from edgediff.text.emphasis import apply_weights
from edgediff.text.tokenizer import MAX_FILE, EncodedPrompt, PromptReport, Tokenizer


class TextSettings(Protocol):
    """The part of a call's `Settings` that its prompts depend on."""

    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str | None: ...
    @property
    def prompt_weights(self) -> bool: ...
    @property
    def long_prompts(self) -> bool: ...
    @property
    def clip_skip(self) -> int | None: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def guidance(self, embedding_dim: int | None) -> Guidance: ...


class TextConditioner:
    """A bundle's tokenizers and text encoders. Keeps no state between calls.

    Raises BundleError if a tokenizer is damaged."""

    def __init__(self, bundle: Bundle, *, check_hashes: bool = True) -> None:
        self._manifest = bundle.manifest
        self._tokenizers = {
            encoder: Tokenizer(
                bundle.path(spec.file),
                spec,
                bundle.read(spec.file, limit=MAX_FILE, check_hash=check_hashes),
            )
            for encoder, spec in bundle.manifest.tokenizers.items()
        }

    def __call__(
        self, settings: TextSettings, run_stage: RunStage
    ) -> tuple[PromptReport, Conditioning, Conditioning | None]:
        """A report on the prompts, the conditioning of the prompt, and that of the negative prompt,
        which is None if guidance does not need it. run_stage: runs a graph of the bundle.

        Raises InputError for prompts that are too long or badly weighted, and all that `run_stage`
        raises."""
        prompt = self._tokenize(settings.prompt, settings)
        guided = settings.guidance(self.guidance_embedding_dim()).needs_negative
        zeros = settings.negative_prompt is None and self._manifest.zeros_for_no_negative
        against = self._tokenize(settings.negative_prompt or "", settings) if guided else None
        together = [prompt] if zeros or against is None else [prompt, against]
        prompt, *further = self._alike(together)
        conditioning = self._encode(prompt, settings, settings.clip_skip, run_stage)
        negative = None
        if zeros and against is not None:
            negative = _zeros(conditioning)
        for other in further:
            # As in diffusers, clip_skip does not apply to the negative prompt.
            negative = self._encode(other, settings, None, run_stage)
        main = self._manifest.conditioning.states[0][0]
        first = prompt[main]
        report = PromptReport(
            text=settings.prompt,
            tokens=first.tokens,
            limit=first.limit,
            truncated=first.truncated,
            negative_text=settings.negative_prompt,
            negative_truncated=against[main].truncated if against is not None else "",
            chunks=max(len(encoded.ids) for encoded in prompt.values()),
        )
        return report, conditioning, negative

    def guidance_embedding_dim(self) -> int | None:
        """The width of the denoiser's guidance embedding, or None if it has no such input. Raises
        BundleError if the width is not fixed."""
        graph = self._manifest.denoiser.graph
        spec = graph.input(GUIDANCE_EMBEDDING)
        if spec is None:
            return None
        width = spec.shape[-1]
        if not isinstance(width, int):
            raise BundleError(
                f"{graph.file}: {GUIDANCE_EMBEDDING} has no fixed width: export the bundle again"
            )
        return width

    def _tokenize(self, prompt: str, settings: TextSettings) -> dict[str, EncodedPrompt]:
        """Text encoder → the prompt, encoded for it."""
        return {
            encoder: tokenizer.encode(
                prompt, weighted=settings.prompt_weights, chunked=settings.long_prompts
            )
            for encoder, tokenizer in self._tokenizers.items()
        }

    def _alike(
        self, prompts: Sequence[Mapping[str, EncodedPrompt]]
    ) -> list[dict[str, EncodedPrompt]]:
        """Prompts for one batch: for each encoder in the same number of chunks, all of the same
        length. The encoders of a group have the same number of chunks."""
        made: list[dict[str, EncodedPrompt]] = [{} for _ in prompts]
        groups = [*self._manifest.conditioning.states]
        groups += [(pooled,) for pooled in self._manifest.conditioning.pooled]
        for group in groups:
            chunks = max(len(prompt[encoder].ids) for prompt in prompts for encoder in group)
            for encoder in group:
                length = max(prompt[encoder].ids.shape[1] for prompt in prompts)
                for of, prompt in zip(made, prompts, strict=True):
                    if encoder not in of:
                        tokenizer = self._tokenizers[encoder]
                        of[encoder] = tokenizer.extended(prompt[encoder], chunks, length)
        return made

    def _encode(
        self,
        prompt: Mapping[str, EncodedPrompt],
        settings: TextSettings,
        clip_skip: int | None,
        run_stage: RunStage,
    ) -> Conditioning:
        """A prompt → its hidden states (1, tokens, width) float32, chunk after chunk, joined across
        the encoders as the manifest states; and the denoiser's other inputs for it."""
        joined, denoiser = self._manifest.conditioning, self._manifest.denoiser.graph
        encoders = {
            encoder: self._run_encoder(encoder, encoded, run_stage)
            for encoder, encoded in prompt.items()
        }

        def states(encoder: str) -> NDArray[np.float32]:
            name = states_output(self._manifest.graphs[encoder], clip_skip)
            chunks = zip(encoders[encoder], prompt[encoder].weights, strict=True)
            return np.concatenate([apply_weights(o[name], w) for o, w in chunks], axis=1)

        groups = [np.concatenate([states(e) for e in g], axis=2) for g in joined.states]
        extra: dict[str, NDArray[np.float32]] = {}
        if joined.pooled and denoiser.input(POOLED_STATES) is not None:
            pooled = [encoders[encoder][0][POOLED_STATES] for encoder in joined.pooled]
            extra[POOLED_STATES] = np.concatenate(pooled, axis=-1)
        mask = denoiser.input(ENCODER_ATTENTION_MASK)
        if mask is not None:
            parts = [prompt[group[0]].mask.reshape(1, -1) for group in joined.states]
            extra[ENCODER_ATTENTION_MASK] = np.concatenate(parts, axis=1).astype(mask.dtype)
        if denoiser.input(TIME_IDS) is not None:
            extra[TIME_IDS] = time_ids(settings.width, settings.height)
        return Conditioning(encoder_hidden_states=_as_tokens(groups), extra=extra)

    def _run_encoder(
        self, encoder: str, encoded: EncodedPrompt, run_stage: RunStage
    ) -> list[dict[str, NDArray[Any]]]:
        """A text encoder's outputs for each chunk, in a batch of one; equal chunks run once."""
        graph = self._manifest.graphs[encoder]
        ids_spec, mask_spec = graph.require_input(INPUT_IDS), graph.input(ATTENTION_MASK)
        done: dict[bytes, dict[str, NDArray[Any]]] = {}
        outputs = []
        for ids, mask in zip(encoded.ids, encoded.mask, strict=True):
            key = ids.tobytes() + mask.tobytes()
            if key not in done:
                inputs = {INPUT_IDS: ids[None].astype(ids_spec.dtype)}
                if mask_spec is not None:
                    inputs[ATTENTION_MASK] = mask[None].astype(mask_spec.dtype)
                done[key] = run_stage(encoder, inputs)
            outputs.append(done[key])
        return outputs


def _as_tokens(groups: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The hidden states (1, tokens, width) of each group → joined along the tokens, narrower ones
    padded with zeros to the widest."""
    width = max(states.shape[2] for states in groups)
    wide = [np.pad(states, ((0, 0), (0, 0), (0, width - states.shape[2]))) for states in groups]
    return np.concatenate(wide, axis=1)


def time_ids(width: int, height: int) -> NDArray[np.float32]:
    """SDXL's size conditioning for an image of this size in pixels, (1, 6) float32: original size,
    crop offsets of 0, target size (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""
    return np.array([[height, width, 0, 0, height, width]], np.float32)


def at_size(conditioning: Conditioning, width: int, height: int) -> Conditioning:
    """The same conditioning for an image of another size in pixels, if it depends on the size."""
    if TIME_IDS not in conditioning.extra:
        return conditioning
    extra = {**conditioning.extra, TIME_IDS: time_ids(width, height)}
    return Conditioning(encoder_hidden_states=conditioning.encoder_hidden_states, extra=extra)


def _zeros(conditioning: Conditioning) -> Conditioning:
    """Zeros, which SDXL was trained with in place of an empty prompt, for the same image size."""
    extra = {
        name: value if name in (TIME_IDS, ENCODER_ATTENTION_MASK) else np.zeros_like(value)
        for name, value in conditioning.extra.items()
    }
    states = np.zeros_like(conditioning.encoder_hidden_states)
    return Conditioning(encoder_hidden_states=states, extra=extra)


def states_output(graph: GraphSpec, clip_skip: int | None) -> str:
    """The name of the text encoder's output that conditions the denoiser: the first output, or the
    one for clip_skip. Raises InputError if the graph has no such output."""
    outputs = [spec.name for spec in graph.outputs]
    if clip_skip is None:
        return outputs[0]
    if clip_skip_output(clip_skip) in outputs:
        return clip_skip_output(clip_skip)
    able = [str(k) for k in range(1, len(outputs)) if clip_skip_output(k) in outputs]
    if able:
        raise InputError(
            f"`clip_skip` is {clip_skip}: this bundle's text encoder can leave out"
            f" {' or '.join(able)} of its layers, or none"
        )
    raise InputError(
        f"`clip_skip` is {clip_skip}: this bundle's text encoder has only the output of its last"
        " layer: export the bundle again"
    )
