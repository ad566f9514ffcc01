"""Prompts to what the network is conditioned on, through the bundle's text encoders."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle import Bundle
from edgediff.denoiser import Conditioning, needs_negative
from edgediff.errors import BundleError
from edgediff.prompt import EncodedPrompt, PromptReport, Tokenizer
from edgediff.settings import Settings

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
        encoded, prompt = self._encode(settings.prompt)
        negative_encoded, negative = None, None
        if needs_negative(settings.guidance_scale, self.guidance_embedding_dim()):
            negative_encoded, negative = self._encode(settings.negative_prompt or "")
        report = PromptReport(
            text=settings.prompt,
            tokens=encoded.tokens,
            limit=encoded.limit,
            truncated=encoded.truncated,
            negative_text=settings.negative_prompt,
            negative_truncated=negative_encoded.truncated if negative_encoded else "",
        )
        return report, prompt, negative

    def guidance_embedding_dim(self) -> int | None:
        """The width of the UNet's `timestep_cond`, None where it has no such input."""
        spec = self._manifest.graphs["unet"].input("timestep_cond")
        if spec is None:
            return None
        width = spec.shape[-1]
        if not isinstance(width, int):
            raise BundleError("unet: timestep_cond has no fixed width: export the bundle again")
        return width

    def _encode(self, prompt: str) -> tuple[EncodedPrompt, Conditioning]:
        """A prompt → its tokens and its hidden states (1, tokens, width) float32."""
        graph = self._manifest.graphs["text_encoder"]
        encoded = self._tokenizer.encode(prompt)
        ids = encoded.ids.astype(np.dtype(graph.inputs[0].dtype))
        outputs = self._run_stage("text_encoder", {graph.inputs[0].name: ids})
        return encoded, Conditioning(encoder_hidden_states=outputs["last_hidden_state"])
