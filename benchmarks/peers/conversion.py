"""The model in each peer's format, made once and kept in the work folder.

Every format comes from one diffusers folder with random weights, by the peer's own tools. To make
one again, delete its folder. Models that other benchmarks use too have the same names there.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import once
from benchmarks.peers.environments import HERE, install, python, run


@dataclass(frozen=True, kw_only=True)
class Place:
    """The work folder, and the shape of its models (one of sd15_shape's SHAPES)."""

    work: Path
    shape: str = "sd15"

    def environment(self, name: str) -> Path:
        """The folder of an environment; `install` makes it."""
        return self.work / "environments" / name

    def model(self, name: str) -> Path:
        return self.work / f"{self.shape}-{name}"

    def cache(self, name: str) -> Path:
        """The folder for a peer's compiled models."""
        return self.work / "cache" / f"{self.shape}-{name}"


def source(place: Place) -> Path:
    """The diffusers folder."""

    def write(folder: Path) -> None:
        module = ("-m", "benchmarks.sd15_shape", folder, "--shape", place.shape)
        run(sys.executable, *module, ours=True)

    return once(place.work / place.shape, write)


def edgediff_fp32(place: Place) -> Path:
    return _edgediff(place, "fp32")


def edgediff_int8(place: Place) -> Path:
    return _edgediff(place, "int8")


def edgediff_int8_avx2(place: Place) -> Path:
    return _edgediff(place, "int8", "--profile", "x86-avx2")


def edgediff_int8_openvino(place: Place) -> Path:
    return _edgediff(place, "int8", "--target", "openvino")


def _edgediff(place: Place, precision: str, *options: str) -> Path:
    model = source(place)

    def export(out: Path) -> None:
        export = ("-m", "edgediff", "export", model, out, "--precision", precision)
        run(sys.executable, *export, *options, ours=True)

    return once(place.model("-".join((precision, *options[1:]))), export)


def optimum_fp32(place: Place) -> Path:
    model = source(place)

    def export(out: Path) -> None:
        environment = place.environment("optimum-onnx")
        install(environment, "optimum-onnx")
        tool = (python(environment), "-m", "optimum.exporters.onnx")
        run(*tool, "--model", model, "--task", "text-to-image", out)

    return once(place.model("optimum"), export)


def optimum_int8(place: Place) -> Path:
    return _convert(place, "optimum-onnx", "quantize_optimum", optimum_fp32(place), "int8")


def openvino_fp16(place: Place) -> Path:
    return _convert(place, "openvino-export", "to_openvino", source(place), "fp16")


def openvino_int8(place: Place) -> Path:
    fp16 = openvino_fp16(place)
    return _convert(place, "openvino-export", "quantize_openvino", fp16, "int8")


def gguf_f16(place: Place) -> Path:
    return _convert(place, "stable-diffusion-cpp", "to_gguf", source(place), "f16")


def gguf_q8_0(place: Place) -> Path:
    """From float16, which convolutions keep: their rows are too short for this format's blocks."""
    half = gguf_f16(place) / "model.gguf"
    return _convert(place, "stable-diffusion-cpp", "to_gguf", half, "q8_0")


def _convert(place: Place, environment: str, converter: str, model: Path, kind: str) -> Path:
    """Run a converter in its environment. `kind`: the name of the result, and GGUF's type."""

    def convert(out: Path) -> None:
        folder = place.environment(environment)
        install(folder, environment)
        more = (kind,) if converter == "to_gguf" else ()
        run(python(folder), HERE / "converters" / f"{converter}.py", model, out, *more)

    return once(place.model(f"{environment}-{kind}"), convert)
