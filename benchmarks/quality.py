"""PSNR of int8 images against the float model's, and of TAESD's int8 decoder.

    python -m benchmarks.quality [--float BUNDLE --int8 BUNDLE] [--pairs 64] [--profile auto]
                                 [--taesd DIR [--images DIR]] [--work DIR] [--json OUT]

Without bundles, it exports the built-in model in float and in int8 from the weights beside its
recipe (export/demo_model/recover.py). The export uses none of these prompts.

--taesd: a folder with taesd_encoder.safetensors and taesd_decoder.safetensors. Photographs, from
--images or from scikit-image if it is installed, are encoded by its float encoder and decoded by
the float decoder, by the int8 decoder (both from `edgediff export --vae`), and by the float one in
tiles.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import edgediff
from benchmarks import models, taesd
from benchmarks.measure import (
    Check,
    add_json,
    machine,
    print_checks,
    print_machine,
    print_table,
    write_json,
)
from edgediff.images.metrics import psnr
from edgediff.networks.autoencoder import to_images

PROMPTS = (
    "a red apple", "a fox", "a red heart", "the sun", "a house", "a fish", "a tree", "a car",
    "a cat", "a star", "a dog", "a banana", "a bicycle", "a bird", "a boat", "a book",
    "a bottle", "a bread", "a bus", "a butterfly", "a cake", "a camera", "a candle", "a carrot",
    "a castle", "a chair", "a cherry", "a clock", "a cloud", "a cow", "a crown", "a cup of coffee",
    "a dolphin", "a door", "a drum", "an elephant", "an envelope", "a fire", "a flower", "a frog",
    "a ghost", "a grape", "a green book", "a guitar", "a hammer", "a hamburger", "a hat", "a horse",
    "a key", "a lamp", "a lemon", "a lion", "a mountain", "a mushroom", "an owl", "a pear",
    "a penguin", "a pizza", "a rabbit", "a rainbow", "a rocket", "a rose", "a snowman", "a train",
)  # fmt: skip
FIRST_SEED = 1000
MEDIAN_BAR, MINIMUM_BAR = 40.0, 32.0
TAESD_MEDIAN_BAR, TAESD_MINIMUM_BAR = 44.0, 36.0
TILE, TILED_BAR = 256, 40.0
_LEAST, _MOST = 256, 512  # pixels a side of TAESD's images
_FEW = 16


def summary(psnrs: Sequence[float | None]) -> dict[str, float]:
    """Median, minimum and 5th percentile in dB; None, equal images, counts as infinite."""
    ordered = sorted(float("inf") if p is None else p for p in psnrs)
    return {
        "median": statistics.median(ordered),
        "minimum": ordered[0],
        "percentile_5": ordered[int(0.05 * (len(ordered) - 1))],
    }


def built_in_bundles(work: Path, profile: str = "auto") -> tuple[Path, Path]:
    """Bundles of the built-in model: float, and int8 for a profile."""
    script = str(models.ROOT / "export" / "demo_model" / "recover.py")
    source = models.once(work / "emoji-float", lambda out: models.run_python(script, str(out)))
    defaults = edgediff.load(provider="cpu", check_hashes=False).defaults
    options = (
        *("--steps", str(defaults.steps)),
        *("--guidance", str(defaults.guidance_scale)),
        *("--sampler", defaults.sampler),
    )
    return (
        models.bundle(work, source, "fp32", *options),
        _int8(work, source, f"{source.name}-int8", profile, *options),
    )


def _int8(work: Path, source: Path, name: str, profile: str, *options: str) -> Path:
    """A bundle in int8, calibrated on as many images as an export can."""
    options = (*options, "--fidelity", "full")
    if profile == "auto":
        return models.bundle(work, source, "int8", *options, name=name)
    options = (*options, "--profile", profile)
    return models.bundle(work, source, "int8", *options, name=f"{name}-{profile}")


def compare_images(float_bundle: Path, int8_bundle: Path, pairs: int) -> dict[str, Any]:
    """Images of the same prompts and seeds, with the float model's steps, size and guidance."""
    print(f"{pairs} pairs of images", file=sys.stderr)
    images = []
    with (
        edgediff.load(float_bundle, provider="cpu") as f,
        edgediff.load(int8_bundle, provider="cpu") as q,
    ):
        for i in range(pairs):
            prompt, seed = PROMPTS[i % len(PROMPTS)], FIRST_SEED + i
            d = f.defaults
            settings: dict[str, Any] = {
                "seed": seed,
                "steps": d.steps,
                "guidance_scale": d.guidance_scale,
                "sampler": d.sampler,
                "size": (d.width, d.height),
            }
            reference, image = (
                np.asarray(pipe.generate(prompt, **settings).images[0]) for pipe in (f, q)
            )
            decibels = psnr(image, reference)
            images.append({"prompt": prompt, "seed": seed, "psnr_db": decibels})
        stages = {
            stage: {
                "precision": graph.precision,
                "float": f.bundle.manifest.fidelity.stages[stage].error,
                "int8": q.bundle.manifest.fidelity.stages[stage].error,
            }
            for stage, graph in q.bundle.manifest.graphs.items()
        }
        return {
            "float": f.bundle.id,
            "int8": q.bundle.id,
            "steps": f.defaults.steps,
            "guidance_scale": f.defaults.guidance_scale,
            "sampler": f.defaults.sampler,
            "size": [f.defaults.width, f.defaults.height],
            "stages": stages,
            "images": images,
        }


def compare_taesd(
    work: Path, folder: Path, images: Sequence[Path], profile: str = "auto"
) -> dict[str, Any]:
    """TAESD's decoder in int8 against float, on the latents of photographs."""
    vae = models.once(work / "taesd", lambda out: taesd.write_vae(folder, out))
    carrier = models.pipeline(work, "sd1")
    options = ("--vae", str(vae.resolve()))
    bundles = [
        models.bundle(work, carrier, "fp32", *options, name="taesd-fp32"),
        _int8(work, carrier, "taesd-int8", profile, *options),
    ]
    measured = []
    f, q = (edgediff.load(b, provider="cpu") for b in bundles)
    tiled = edgediff.load(bundles[0], provider="cpu", tile=TILE)
    scaling = f.bundle.manifest.latent.scaling_factor
    for path, latents in zip(images, encode(vae, images), strict=True):
        reference, decoded = (
            np.asarray(
                to_images(pipe.run_stage("vae_decoder", {"latent_sample": latents})["sample"])[0]
            )
            for pipe in (f, q)
        )
        measured.append(
            {
                "image": path.name,
                "size": [reference.shape[1], reference.shape[0]],
                "float_to_original_db": psnr(reference, read_image(path)),
                "psnr_db": psnr(decoded, reference),
                "tiled_db": psnr(np.asarray(tiled.decode(latents * scaling)[0]), reference),
            }
        )
    graph = q.bundle.manifest.graphs["vae_decoder"]
    return {
        "float": f.bundle.id,
        "int8": q.bundle.id,
        "precision": graph.precision,
        "error": q.bundle.manifest.fidelity.stages["vae_decoder"].error,
        "images": measured,
    }


def encode(vae: Path, images: Sequence[Path]) -> list[NDArray[np.float32]]:
    """Images → latents (1, 4, h/8, w/8) float32, with the float encoder in torch."""
    from edgediff_export.quiet import quiet

    with quiet():
        import torch
        from diffusers import AutoencoderTiny

        model = AutoencoderTiny.from_pretrained(vae).eval()
    latents = []
    for path in images:
        pixels = torch.from_numpy(read_image(path).astype(np.float32))
        pixels = pixels.permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            latents.append(model.encode(pixels).latents.numpy())
    return latents


def read_image(path: Path) -> NDArray[np.uint8]:
    """The middle of an image, at most 512 pixels a side, a multiple of 8: (h, w, 3) uint8."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    shrink = max(1.0, min(image.size) / _MOST)
    image = image.resize([round(s / shrink) for s in image.size], Image.Resampling.LANCZOS)
    width, height = (min(s, _MOST) // 8 * 8 for s in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def find_images(folder: Path | None) -> list[Path]:
    """The PNG and JPEG files in `folder` that are large enough; by default installed samples."""
    folders = [folder] if folder else [*_installed(), models.ROOT / "docs"]
    found = []
    for path in sorted(p for f in folders for p in f.iterdir()):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as opened:
                if min(opened.size) >= _LEAST:
                    found.append(path)
    if not found:
        where = ", ".join(map(str, folders))
        sys.exit(f"{where}: expected a PNG or JPEG of at least {_LEAST} pixels a side")
    if len(found) < _FEW:
        print(f"{len(found)} images are few: give --images a folder of more", file=sys.stderr)
    return found


def _installed() -> list[Path]:
    """scikit-image's sample images, if it is installed."""
    spec = importlib.util.find_spec("skimage")
    return [Path(p) / "data" for p in (spec.submodule_search_locations or [])] if spec else []


def _checks(what: str, psnrs: Sequence[float | None], median: float, minimum: float) -> list[Check]:
    found = summary(psnrs)
    return [
        Check(what=f"{what}: {name} PSNR", value=value, bar=bar, at_least=True, unit=" dB")
        for name, value, bar in (
            ("median", found["median"], median),
            ("lowest", found["minimum"], minimum),
        )
    ]


def _print_psnrs(what: str, psnrs: Sequence[float | None]) -> None:
    found = summary(psnrs)
    figures = (f"{found[k]:.1f} dB" for k in ("median", "percentile_5", "minimum"))
    print()
    print_table(
        ("PSNR, int8 against float", "images", "median", "5th percentile", "lowest"),
        [(what, str(len(psnrs)), *figures)],
    )


def _plain(found: dict[str, float]) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in found.items()}


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--float", type=Path, metavar="BUNDLE", dest="float_bundle")
    parser.add_argument("--int8", type=Path, metavar="BUNDLE", dest="int8_bundle")
    parser.add_argument("--pairs", type=int, default=len(PROMPTS), help="%(default)s")
    parser.add_argument("--profile", default="auto", help="as in `edgediff export`")
    parser.add_argument("--taesd", type=Path, metavar="DIR")
    parser.add_argument("--images", type=Path, metavar="DIR")
    models.add_work(parser)
    add_json(parser)
    arguments = parser.parse_args()
    if (arguments.float_bundle is None) != (arguments.int8_bundle is None):
        parser.error("give --float and --int8, or neither")
    bundles = (arguments.float_bundle, arguments.int8_bundle)
    if arguments.float_bundle is None:
        bundles = built_in_bundles(arguments.work, arguments.profile)

    found: dict[str, Any] = {"machine": machine(), "provider": "cpu"}
    print_machine(found["machine"])
    model = found["model"] = compare_images(*bundles, arguments.pairs)
    name = bundles[1].name
    psnrs = [p["psnr_db"] for p in model["images"]]
    model["psnr_db"] = _plain(summary(psnrs))
    print(
        f"{name}, {model['size'][0]}x{model['size'][1]}, {model['steps']} steps of"
        f" {model['sampler']}, guidance {model['guidance_scale']:g}"
    )
    _print_psnrs(name, psnrs)
    print()
    print_table(
        ("‖q−f‖/‖f‖", "precision", "float", "int8"),
        [
            (stage, e["precision"], f"{e['float']:.1e}", f"{e['int8']:.1e}")
            for stage, e in model["stages"].items()
        ],
    )
    checks = _checks(name, psnrs, MEDIAN_BAR, MINIMUM_BAR)
    if arguments.taesd:
        images = find_images(arguments.images)
        decoder = found["taesd"] = compare_taesd(
            arguments.work, arguments.taesd, images, arguments.profile
        )
        psnrs = [p["psnr_db"] for p in decoder["images"]]
        decoder["psnr_db"] = _plain(summary(psnrs))
        _print_psnrs(f"TAESD's decoder ({decoder['precision']})", psnrs)
        checks += _checks("TAESD's decoder", psnrs, TAESD_MEDIAN_BAR, TAESD_MINIMUM_BAR)
        tiled = [p["tiled_db"] for p in decoder["images"]]
        what = f"TAESD's decoder in tiles of {TILE} pixels, float"
        checks += _checks(what, tiled, TILED_BAR, TILED_BAR)
    print_checks(checks)
    found["checks"] = [c.record() for c in checks]
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
