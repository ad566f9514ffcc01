"""Writes and reads the `parameters` text of an image, in the form of AUTOMATIC1111's web UI."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from edgediff.errors import InputError
from edgediff.request.options import Options
from edgediff.sampling.discrete import SPACED

# The samplers' names in AUTOMATIC1111's web UI and in the tools that read its PNGs.
SAMPLER_LABELS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "pndm": "PLMS",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
}


SPACING_LABELS = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


def parameters(record: Mapping[str, Any]) -> str:
    """The `parameters` text of an image, which other tools read.

    record: the image's `Settings` and seed, by name. The form is AUTOMATIC1111's: the prompt, a
    line for the negative prompt, a line of fields."""
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    fields = {
        "Steps": record["steps"],
        "Sampler": SAMPLER_LABELS.get(record["sampler"], record["sampler"]),
        **_noise_level_fields(record),
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        **_variation_fields(record),
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["bundle"][:10],
        "Model": record["model"],
        **_text_fields(record),
        **_pass_fields(record),
        "Version": f"edgediff {record['edgediff']}",
    }
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in fields.items()))
    return "\n".join(lines)


def _noise_level_fields(record: Mapping[str, Any]) -> dict[str, object]:
    spacing = record.get("spacing")
    return {} if spacing is None else {"Schedule type": SPACING_LABELS[spacing]}


def _variation_fields(record: Mapping[str, Any]) -> dict[str, object]:
    if record.get("variation_seed") is None:
        return {}
    strength = f"{record['variation_strength']:g}"
    return {"Variation seed": record["variation_seed"], "Variation seed strength": strength}


def _text_fields(record: Mapping[str, Any]) -> dict[str, object]:
    """The fields for options that change how the prompts are read. Readers of this form count the
    last layer as clip skip 1, and give brackets weight unless a field says no."""
    fields: dict[str, object] = {}
    if record.get("clip_skip") is not None:
        fields["Clip skip"] = record["clip_skip"] + 1
    brackets = set(record["prompt"] + (record["negative_prompt"] or "")) & set("([")
    if brackets and not record.get("prompt_weights"):
        fields["Emphasis"] = "None"
    return fields


def _pass_fields(record: Mapping[str, Any]) -> dict[str, object]:
    """The fields of an input image and of a second pass; both call their strength the same."""
    if record.get("hires") is None:
        strength = record.get("strength")
        return {} if strength is None else {"Denoising strength": f"{strength:g}"}
    return {
        "Denoising strength": f"{record['hires_strength']:g}",
        "Hires upscale": f"{record['hires']:g}",
        "Hires steps": record["hires_steps"],
        "Hires upscaler": "Latent (bicubic)" if record["hires_mode"] == "latent" else "Lanczos",
    }


def _quote(value: str) -> str:
    """Values with separators in them go in JSON quotes, as the readers of this form expect."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


MAX_CHARACTERS = 100_000
"""Of a text that is read."""
# Linear in the text: each part of it is gone through once, whatever follows.
_FIELD = re.compile(r'\s*+([^:,]++)(?::\s*+("(?:\\.|[^"\\])*+"|[^,]*+))?(?:,|$)')
_NETWORK = re.compile(r"(?<! ) *+(<(?:lora|lyco|hypernet):[^<>]{0,500}>)")


_AUTOMATIC = {"DPM++ 2M": "Karras", "DPM++ SDE": "Karras", "DPM++ 2M SDE": "Exponential"}
"""The meaning of "Schedule type: Automatic" for these samplers; for others it has none."""


_NEGATIVE = "Negative prompt:"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A parsed `parameters` text: the prompt, the fields that have a counterpart in `Options`, the
    model's name, and the other fields as text."""

    prompt: str
    options: Options
    model: str | None
    ignored: tuple[str, ...]


def parse_parameters(text: str) -> Parsed:
    """AUTOMATIC1111's form: the prompt, `Negative prompt: …`, a line of `Key: value, …`.

    Raises InputError for a text in another form, and of more than MAX_CHARACTERS."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"its `parameters` text has more than {MAX_CHARACTERS} characters")
    lines = text.strip().splitlines()
    last = next((k for k in range(len(lines) - 1, -1, -1) if lines[k].startswith("Steps:")), None)
    if last is None:
        raise InputError(
            "its `parameters` text is not in the form of AUTOMATIC1111's web UI: expected a line of"
            " `Steps: …, Sampler: …, Seed: …`"
        )
    start = next((k for k in range(last) if lines[k].startswith(_NEGATIVE)), last)
    prompt = "\n".join(lines[:start]).strip()
    negative = "\n".join(lines[start:last]).removeprefix(_NEGATIVE).strip()
    found = _FIELD.finditer(lines[last])
    fields = {field[1].strip(): _unquote(field[2]) for field in found if field[2] is not None}
    ignored = _NETWORK.findall(prompt)
    prompt = _NETWORK.sub("", prompt).strip()
    model = fields.pop("Model", None)
    for origin in ("Model hash", "Version"):  # these do not change the image
        fields.pop(origin, None)
    options: dict[str, Any] = {"negative_prompt": negative} if negative else {}
    if fields.get("Emphasis") == "None":
        del fields["Emphasis"]
    elif {*"(["} & {*prompt, *negative}:  # brackets weight words there, unless this field is set
        options["prompt_weights"] = True
    if fields.get("Clip skip") == "1":  # no layer is skipped
        del fields["Clip skip"]
    for name, value in (
        ("steps", _take(fields, "Steps", r"\d+", int)),
        *_take_sampling(fields),
        ("guidance_scale", _take(fields, "CFG scale", r"[-+.\deE]+", float)),
        ("seed", _take(fields, "Seed", r"-?\d+", int)),
        *_take_variation(fields),
        ("size", _take(fields, "Size", r"\d+x\d+", lambda v: tuple(map(int, v.split("x"))))),
    ):
        if value is not None:
            options[name] = value
    ignored += [f"{key}: {value}" for key, value in fields.items()]
    ignored += [line for line in lines[last + 1 :] if line.strip()]
    return Parsed(
        prompt=prompt,
        options=cast("Options", options),
        model=model,
        ignored=tuple(ignored),
    )


def _unquote(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value


def _take(fields: dict[str, str], key: str, pattern: str, convert: Any) -> Any:
    """Remove a field and return its value; None if it is missing or cannot be read."""
    value = fields.get(key)
    if value is None or not re.fullmatch(pattern, value, re.ASCII):
        return None
    try:
        converted = convert(value)
    except ValueError:
        return None
    del fields[key]
    return converted


def _take_sampling(fields: dict[str, str]) -> list[tuple[str, Any]]:
    """The sampler and spacing of those names. Newer versions write the spacing in a field of its
    own, older ones after the sampler's name."""
    samplers = {label: name for name, label in SAMPLER_LABELS.items()}
    spacings = {label: name for name, label in SPACING_LABELS.items()}
    label, spacing = fields.get("Sampler", ""), fields.get("Schedule type")
    if spacing == "Automatic":
        spacing = _AUTOMATIC.get(label)
    if f"{label} {spacing}" in samplers:
        label, spacing = f"{label} {spacing}", None
    elif label not in samplers and label.rpartition(" ")[2] in spacings:
        label, _, spacing = label.rpartition(" ")
    if label not in samplers:
        return []
    sampler = samplers[label]
    del fields["Sampler"]
    fields.pop("Schedule type", None)
    if spacing in spacings and sampler in SPACED:
        return [("sampler", sampler), ("spacing", spacings[spacing])]
    if spacing is not None:
        fields["Schedule type"] = spacing
    return [("sampler", sampler)]


def _take_variation(fields: dict[str, str]) -> list[tuple[str, Any]]:
    """The variation's seed and strength, or neither."""
    names = ("Variation seed", "Variation seed strength")
    if not {*names} <= {*fields}:
        return []
    return [
        ("variation_seed", _take(fields, names[0], r"-?\d+", int)),
        ("variation_strength", _take(fields, names[1], r"[.\d]+", float)),
    ]
