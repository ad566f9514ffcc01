"""The trained pipeline as a diffusers folder: `python export/demo_model/recover.py OUT`.

weights.safetensors beside this file holds it all in float16 (text encoder, UNet, autoencoder with
its encoder), and the tokenizer in its metadata. The bundle that ships is exported from it, so that
int8 can be measured against float, and training can go on from it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: let the package, not its folder, be importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from diffusers import AutoencoderTiny
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from demo_model import autoencoder, tokenizer
from demo_model.diffusion import Networks, Shape, save_pipeline

WEIGHTS = Path(__file__).with_name("weights.safetensors")


def keep(
    networks: Networks, vae: AutoencoderTiny, tokens: CLIPTokenizer, path: Path = WEIGHTS
) -> None:
    """Write the file that `recover` reads."""
    state = {f"networks.{k}": v for k, v in networks.state_dict().items()}
    state |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    halves = {
        k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in state.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        tokens.save_vocabulary(folder)
        files = {n: (Path(folder) / n).read_text() for n in ("vocab.json", "merges.txt")}
    save_file(halves, path, {**files, "scaling_factor": json.dumps(vae.config["scaling_factor"])})


def read(path: Path = WEIGHTS) -> tuple[Networks, AutoencoderTiny, CLIPTokenizer]:
    """What `keep` wrote, in float32. Raises FileNotFoundError where the weights are not here."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: the weights are in edgediff's repository, not in its packages: clone it"
        )
    with safe_open(path, "pt") as file, tempfile.TemporaryDirectory() as folder:
        kept = file.metadata()
        for name in ("vocab.json", "merges.txt"):
            (Path(folder) / name).write_text(kept[name])
        tokens = tokenizer.load(Path(folder))
        networks, vae = Networks(Shape(), tokens).eval(), autoencoder.new_model().eval()
        vae.register_to_config(scaling_factor=json.loads(kept["scaling_factor"]))
        for prefix, module in (("networks.", networks), ("vae.", vae)):
            state = {
                k.removeprefix(prefix): file.get_tensor(k)
                for k in file.keys()  # noqa: SIM118 (it is no mapping)
                if k.startswith(prefix)
            }
            module.load_state_dict(
                {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}
            )
    return networks, vae, tokens


def recover(out: Path, path: Path = WEIGHTS) -> None:
    """Write the diffusers folder `out`. Raises FileNotFoundError where the weights are not here."""
    networks, vae, tokens = read(path)
    save_pipeline(out, networks, vae, tokens)


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder to create")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists: remove it or choose another folder")
    recover(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
