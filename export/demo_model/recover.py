"""The trained pipeline out of a shipped bundle, as a diffusers folder that can be exported again:
`python export/demo_model/recover.py OUT [--bundle DIR] [--redraw SEED]`.

The bundle holds weights in int8; they come out as they are there, so that int8 of them is what
shipped. Measured against them int8 would look better than it is, since rounding them again costs
nothing. With --redraw, each weight is drawn evenly from the interval that was rounded to it: such a
model is as likely to be the one that was trained as any, and int8 of it errs as that of the trained
one did. The autoencoder's encoder does not ship, and is left untrained.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script: let the package, not its folder, be importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from demo_model import autoencoder, tokenizer
from demo_model.diffusion import Networks, Shape, save_pipeline
from edgediff.pipeline import find_bundle

# Parameters that the export could name only by where they are used.
_ALIASES = {"add_embedding.pool.positional_embedding": "add_embedding.pool.bias"}


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder to create")
    parser.add_argument("--bundle", type=Path, default=find_bundle("emoji"))
    parser.add_argument("--redraw", type=int, metavar="SEED")
    arguments = parser.parse_args()
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists: remove it or choose another folder")
    recover(arguments.bundle, arguments.out, redraw=arguments.redraw)
    print(arguments.out)


def recover(bundle: Path, out: Path, *, redraw: int | None = None) -> None:
    """Write the diffusers folder `out`. redraw: the seed of weights within their rounding."""
    random = None if redraw is None else np.random.default_rng(redraw)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder)
        model = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        # Without what the export added for special tokens that are typed in capitals.
        added = {f"{tokenizer.START}</w>", f"{tokenizer.END}</w>"}
        words = {
            w: i for w, i in model["vocab"].items() if i < tokenizer.VOCABULARY and w not in added
        }
        (tokens / "vocab.json").write_text(json.dumps(words, ensure_ascii=False))
        merges = [" ".join(pair) for pair in model["merges"] if "".join(pair) in words]
        (tokens / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        networks = Networks(Shape(), tokenizer.load(tokens)).eval()
        vae = autoencoder.new_model().eval()
        modules = {
            "text_encoder": networks.text_encoder,
            "unet": networks.unet,
            "vae_decoder": vae,
        }
        for stage, module in modules.items():
            fill(module, bundle / f"{stage}.onnx", random, decoder_only=stage == "vae_decoder")
        save_pipeline(out, networks, vae, tokenizer.load(tokens))


def fill(
    module: nn.Module, graph: Path, random: np.random.Generator | None, *, decoder_only: bool
) -> None:
    """Give a module the weights of a graph. Raises KeyError, ValueError where they do not fit."""
    initializers = ir.load(graph).graph.initializers
    weights = {k: v.const_value.numpy() for k, v in initializers.items() if v.const_value}
    # Linear layers lie transposed, but for those whose weights alone are int8.
    transposed = {
        name.removesuffix(".int8")
        for name, value in initializers.items()
        if name.endswith(".int8")
        and value.const_value is not None
        and len(value.const_value.shape) == 2
        and not any(
            use.node.op_type == "Gather" or use.node.attributes.get_int("axis", -1) == 0
            for use in value.uses()
        )
    }
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if decoder_only and not name.startswith("decoder."):
                continue
            values = _weight(weights, _ALIASES.get(name, name), name in transposed, random)
            if values.size != parameter.numel():
                raise ValueError(f"{name}: {values.shape} in the graph, not {parameter.shape}")
            values = np.ascontiguousarray(values.reshape(parameter.shape))
            parameter.copy_(torch.from_numpy(values))


def _weight(
    weights: dict[str, NDArray[np.generic]],
    name: str,
    transposed: bool,
    random: np.random.Generator | None,
) -> NDArray[np.float32]:
    """A torch parameter's values; a norm's may have further dimensions of one."""
    if name in weights:
        return weights[name].astype(np.float32)
    q = weights[f"{name}.int8"].astype(np.float32)
    scale = weights[f"{name}.scale"].astype(np.float32)
    if random is not None:
        inside = np.abs(q) < 127  # the largest of a channel sets its scale
        q = q + inside * random.uniform(-0.5, 0.5, q.shape).astype(np.float32)
    if transposed:
        return (q * scale).T
    return q * scale.reshape(-1, *(1,) * (q.ndim - 1))


if __name__ == "__main__":
    main()
