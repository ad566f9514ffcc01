"""Prompts to what the network is conditioned on, through the bundle's text encoders."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle import Bundle
from edgediff.denoiser import Conditioning, needs_negative
from edgediff.emphasis import apply_weights
from edgediff.errors import BundleError
from edgediff.prompt import EncodedPrompt, PromptReport, Tokenizer
from edgediff.settings import Settings, states_output

RunStage = Callable[[str, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""(stage, inputs by name) → outputs by name."""


class TextConditioner:
    """A bundle's tokenizers and text encoders. Keeps no state between calls.

    run_stage: runs a graph of the bundle. Raises BundleError where a tokenizer is damaged."""

    def __init__(self, bundle: Bundle, run_stage: RunStage) -> None:
        self._manifest = bundle.manifest
        self._run_stage = run_stage
        spec = bundle.manifest.tokenizers["text_encoder"]
        self._tokenizer = Tokenizer(bundle.path(spec.file), spec)

    def __call__(
        self, settings: Settings
    ) -> tuple[PromptReport, Conditioning, Conditioning | None]:
        """What became of the prompts, and the conditioning of the prompt and of the negative one,
        None where guidance does not need it."""
        encoded = [self._tokenize(settings.prompt, settings)]
        if needs_negative(settings.guidance_scale, self.guidance_embedding_dim()):
            encoded.append(self._tokenize(settings.negative_prompt or "", settings))
        chunks = max(len(e.ids) for e in encoded)
        # diffusers leaves out no layer for the negative prompt.
        skips = (settings.clip_skip, None)
        found = [self._encode(e, chunks, k) for e, k in zip(encoded, skips, strict=False)]
        report = PromptReport(
            text=settings.prompt,
            tokens=encoded[0].tokens,
            limit=encoded[0].limit,
            truncated=encoded[0].truncated,
            negative_text=settings.negative_prompt,
            negative_truncated=encoded[1].truncated if len(encoded) > 1 else "",
            chunks=chunks,
        )
        return report, found[0], found[1] if len(found) > 1 else None

    def guidance_embedding_dim(self) -> int | None:
        """The width of the UNet's `timestep_cond`, None where it has no such input."""
        spec = self._manifest.graphs["unet"].input("timestep_cond")
        if spec is None:
            return None
        width = spec.shape[-1]
        if not isinstance(width, int):
            raise BundleError("unet: timestep_cond has no fixed width: export the bundle again")
        return width

    def _tokenize(self, prompt: str, settings: Settings) -> EncodedPrompt:
        return self._tokenizer.encode(
            prompt, weighted=settings.prompt_weights, chunked=settings.long_prompts
        )

    def _encode(self, encoded: EncodedPrompt, chunks: int, clip_skip: int | None) -> Conditioning:
        """A prompt → its hidden states (1, chunks · tokens, width) float32, chunk after chunk;
        empty ones make up for what it has fewer."""
        name = states_output(self._manifest.graphs["text_encoder"], clip_skip)
        states = [
            apply_weights(self._run_encoder(ids)[name], weights)
            for ids, weights in zip(encoded.ids, encoded.weights, strict=True)
        ]
        missing = chunks - len(states)
        if missing:
            states += [self._run_encoder(self._tokenizer.encode("").ids[0])[name]] * missing
        return Conditioning(encoder_hidden_states=np.concatenate(states, axis=1))

    def _run_encoder(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """ids (tokens) → what the text encoder gives for them, in a batch of one."""
        graph = self._manifest.graphs["text_encoder"]
        ids = ids[None].astype(np.dtype(graph.inputs[0].dtype))
        return self._run_stage("text_encoder", {graph.inputs[0].name: ids})
