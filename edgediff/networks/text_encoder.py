"""Prompts to what the network is conditioned on, through the bundle's text encoders."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.backend.run_stage import RunStage
from edgediff.bundle.manifest import Bundle
from edgediff.errors import BundleError
from edgediff.request.settings import Settings, states_output
from edgediff.sampling.denoiser import Conditioning
from edgediff.text.emphasis import apply_weights
from edgediff.text.tokenizer import EncodedPrompt, PromptReport, Tokenizer

TEXT_ENCODER = "text_encoder"
"""The text encoder that every bundle has; others follow it in bundle.json."""
POOLED = "text_embeds"
TIME_IDS = "time_ids"


class TextConditioner:
    """A bundle's tokenizers and text encoders. Keeps no state between calls.

    Raises BundleError if a tokenizer is damaged."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._tokenizers = {
            encoder: Tokenizer(bundle.path(spec.file), spec)
            for encoder, spec in bundle.manifest.tokenizers.items()
        }

    def __call__(
        self, settings: Settings, run_stage: RunStage
    ) -> tuple[PromptReport, Conditioning, Conditioning | None]:
        """What became of the prompts, and the conditioning of the prompt and of the negative one,
        None if guidance does not need it. run_stage: runs a graph of the bundle."""
        prompt = self._tokenize(settings.prompt, settings)
        guided = settings.guidance(self.guidance_embedding_dim()).needs_negative
        zeros = settings.negative_prompt is None and self._manifest.zeros_for_no_negative
        against = self._tokenize(settings.negative_prompt or "", settings) if guided else None
        if zeros or against is None:
            chunks = _chunks(prompt)
        else:
            chunks = max(_chunks(prompt), _chunks(against))
        conditioning = self._encode(prompt, chunks, settings, settings.clip_skip, run_stage)
        negative = None
        if against is not None:
            # diffusers leaves out no layer for the negative prompt.
            negative = (
                _zeros(conditioning)
                if zeros
                else self._encode(against, chunks, settings, None, run_stage)
            )
        first = prompt[TEXT_ENCODER]
        report = PromptReport(
            text=settings.prompt,
            tokens=first.tokens,
            limit=first.limit,
            truncated=first.truncated,
            negative_text=settings.negative_prompt,
            negative_truncated=against[TEXT_ENCODER].truncated if against is not None else "",
            chunks=chunks,
        )
        return report, conditioning, negative

    def guidance_embedding_dim(self) -> int | None:
        """The width of the UNet's `timestep_cond`, None where it has no such input."""
        spec = self._manifest.graphs["unet"].input("timestep_cond")
        if spec is None:
            return None
        width = spec.shape[-1]
        if not isinstance(width, int):
            raise BundleError("unet: timestep_cond has no fixed width: export the bundle again")
        return width

    def _tokenize(self, prompt: str, settings: Settings) -> dict[str, EncodedPrompt]:
        """A prompt as each text encoder takes it."""
        return {
            encoder: tokenizer.encode(
                prompt, weighted=settings.prompt_weights, chunked=settings.long_prompts
            )
            for encoder, tokenizer in self._tokenizers.items()
        }

    def _encode(
        self,
        prompt: Mapping[str, EncodedPrompt],
        chunks: int,
        settings: Settings,
        clip_skip: int | None,
        run_stage: RunStage,
    ) -> Conditioning:
        """A prompt → its hidden states (1, chunks · tokens, width) float32, chunk after chunk, each
        token's of one text encoder after the other's; and what else the UNet takes of it."""
        unet = self._manifest.graphs["unet"]
        states = []
        extra: dict[str, NDArray[np.float32]] = {}
        for encoder, encoded in prompt.items():
            outputs = [self._run_encoder(encoder, ids, run_stage) for ids in encoded.ids]
            name = states_output(self._manifest.graphs[encoder], clip_skip)
            chunked = [
                apply_weights(o[name], weights)
                for o, weights in zip(outputs, encoded.weights, strict=True)
            ]
            missing = chunks - len(chunked)
            if missing:  # empty ones make up for what it has fewer
                empty = self._tokenizers[encoder].encode("").ids[0]
                chunked += [self._run_encoder(encoder, empty, run_stage)[name]] * missing
            states.append(np.concatenate(chunked, axis=1))
            if POOLED in outputs[0] and unet.input(POOLED) is not None:
                extra[POOLED] = outputs[0][POOLED]
        if unet.input(TIME_IDS) is not None:
            extra[TIME_IDS] = time_ids(settings.width, settings.height)
        return Conditioning(encoder_hidden_states=np.concatenate(states, axis=2), extra=extra)

    def _run_encoder(
        self, encoder: str, ids: NDArray[np.int64], run_stage: RunStage
    ) -> dict[str, NDArray[Any]]:
        """ids (tokens) → what a text encoder gives for them, in a batch of one."""
        graph = self._manifest.graphs[encoder]
        ids = ids[None].astype(np.dtype(graph.inputs[0].dtype))
        return run_stage(encoder, {graph.inputs[0].name: ids})


def time_ids(width: int, height: int) -> NDArray[np.float32]:
    """What SDXL's UNet is told of a picture of this size in pixels, (1, 6) float32: that it was
    never larger, is not cropped, and is to be as large (Podell et al. 2023, arXiv:2307.01952,
    section 2.2)."""
    return np.array([[height, width, 0, 0, height, width]], np.float32)


def at_size(conditioning: Conditioning, width: int, height: int) -> Conditioning:
    """The same for a picture of another size in pixels, where the network is told of it."""
    if TIME_IDS not in conditioning.extra:
        return conditioning
    extra = {**conditioning.extra, TIME_IDS: time_ids(width, height)}
    return Conditioning(encoder_hidden_states=conditioning.encoder_hidden_states, extra=extra)


def _chunks(prompt: Mapping[str, EncodedPrompt]) -> int:
    return max(len(encoded.ids) for encoded in prompt.values())


def _zeros(conditioning: Conditioning) -> Conditioning:
    """What SDXL was trained to take for no prompt at all: zeros, for a picture of the same size."""
    extra = {
        name: value if name == TIME_IDS else np.zeros_like(value)
        for name, value in conditioning.extra.items()
    }
    states = np.zeros_like(conditioning.encoder_hidden_states)
    return Conditioning(encoder_hidden_states=states, extra=extra)
