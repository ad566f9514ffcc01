"""One small network that says what an image shows: subjects, place, colour, count, light."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from demo_model.scenes.light import WORDS as LIGHTS
from demo_model.scenes.surroundings import COLOURS, PLAIN, SURROUNDINGS

PLACES = (*SURROUNDINGS, *PLAIN)
LIGHT_CLASSES = ("", *LIGHTS)
COLOUR_CLASSES = tuple(COLOURS) + tuple(word for word in ("white",) if word not in COLOURS)
COUNTS = (1, 2, 3, 4)
HEADS = {
    "place": len(PLACES),
    "colour": len(COLOUR_CLASSES),
    "count": len(COUNTS),
    "light": len(LIGHT_CLASSES),
}
OUTPUTS = ("subjects", *HEADS, "features", "maps")


class _Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.short = nn.Conv2d(before, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.short(x))


class Judge(nn.Module):
    """(n, 128, 128, 3) uint8 → logits of every head, features, and maps for distances."""

    def __init__(self, subjects: int, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        before = (widths[0], *widths[:-1])
        self.levels = nn.ModuleList(
            _Block(b, w, 1 if k == 0 else 2)
            for k, (b, w) in enumerate(zip(before, widths, strict=True))
        )
        self.subjects = nn.Linear(2 * widths[-1], subjects)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], n) for name, n in HEADS.items()}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images (n, 128, 128, 3) uint8 → as `judge`."""
        return self.judge(images.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def judge(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (n, 3, 128, 128) in [-1, 1] → logits of subjects and of each of HEADS, features, maps.

        subjects: one logit each, as several may be there. features (n, 2 widths): what the heads
        read. maps (n, m): unit features of every level at 8×8, as LPIPS compares them (Zhang et al.
        2018): the distance of two images is the squared distance of their maps.
        """
        x = self.stem(x)
        maps = []
        for level in self.levels:
            x = level(x)
            small = normalize(adaptive_avg_pool2d(x, 8), dim=1) / (8 * len(self.levels) ** 0.5)
            maps.append(small.flatten(1))
        found = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        heads = tuple(self.heads[name](found) for name in HEADS)
        return self.subjects(found), *heads, found, torch.cat(maps, 1)


def write(model: Judge, path: Path) -> None:
    """The judge as one ONNX file: images → OUTPUTS."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The newer exporter needs another package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, 128, 128, 3, dtype=torch.uint8),),
            buffer,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "n"} for name in ("images", *OUTPUTS)},
            dynamo=False,
        )
    path.write_bytes(buffer.getvalue())
