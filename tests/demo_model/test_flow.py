"""Flow matching: a straight way to noise, exact steps back, leaps, guidance, training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import checkpoint
from demo_model import tokenizer as tokenizers
from demo_model.first_stage.model import new_autoencoder
from demo_model.flow import (
    few_steps,
    forward_process,
    learning,
    pipeline,
    reverse_process,
    training,
)
from demo_model.flow.guidance import guided
from demo_model.flow.networks import Denoiser, Shape, span_embedding
from demo_model.text_encoder.model import Shape as TextShape
from demo_model.text_encoder.model import new_encoder, tokenize
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

SHAPE = Shape(
    channels=(8, 16), attention=(False, True), heads=2, groups=4, latent_channels=4, latent_size=4
)
CAPTIONS = [["a fox", "fox"], ["a cat in the snow"], ["two apples"], ["a car"]]


# Inside PyTorch: forward-mode derivatives are compiled when they are first taken.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train([c for each in CAPTIONS for c in each], folder, 560)
    return tokenizers.load(folder, 12)


@pytest.fixture
def denoiser(tokens: CLIPTokenizer) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(SHAPE, new_encoder(tokens, TextShape(width=16, layers=1, heads=2)))


def _noise(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_way_is_straight_and_ends_in_noise() -> None:
    x, e = _noise(seed=1), _noise(seed=2)
    for t in (0.0, 0.3, 1.0):
        z = forward_process.noised(x, e, torch.full((3,), t))
        assert torch.allclose(z, x + t * forward_process.velocity(x, e), atol=1e-6)
    assert torch.equal(forward_process.noised(x, e, torch.ones(3)), e)


def test_intervals_are_ordered_and_some_are_instants() -> None:
    random = torch.Generator().manual_seed(0)
    r, t = forward_process.draw_intervals(4000, random, instants=0.5)
    assert (r <= t).all()
    assert (t <= 1).all()
    assert (r >= 0).all()
    assert float((r == t).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((t == 1).float().mean()) == pytest.approx(1 / 6, abs=0.02)


class _Exact(torch.nn.Module):
    """A denoiser whose average velocity is known: that of straight lines to one image."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, z: Tensor, _r: Tensor, t: Tensor, _hidden: Tensor) -> Tensor:
        return (z - self.x) / t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_reverse_process_follows_an_exact_velocity_to_the_image(steps: int) -> None:
    x, e = _noise(seed=1), _noise(seed=2)
    found = reverse_process.sample(_Exact(x), e, torch.zeros(3, 1, 1), steps=steps)  # type: ignore[arg-type]
    assert torch.allclose(found, x, atol=1e-5)


def test_times_go_evenly_from_noise_to_the_image() -> None:
    assert reverse_process.times(4) == [1, 0.75, 0.5, 0.25, 0]
    assert reverse_process.times(1) == [1, 0]


def test_guidance_of_one_is_the_text_s_own_and_of_zero_the_other_s() -> None:
    a, b = _noise(seed=1), _noise(seed=2)
    assert torch.equal(guided(a, b, 0.0), b)
    assert torch.allclose(guided(a, b, 1.0), a, atol=1e-6)
    assert torch.allclose(guided(a, b, 3.0), b + 3 * (a - b))


def test_guidance_moves_the_result(denoiser: Denoiser, tokens: CLIPTokenizer) -> None:
    ids = tokenize(tokens, ["a fox"] * 3)
    hidden, nothing = denoiser.encode(ids), denoiser.encode(tokenize(tokens, [""]))
    plain = reverse_process.sample(denoiser, _noise(), hidden, steps=2)
    same = reverse_process.sample(denoiser, _noise(), hidden, steps=2, scale=1.0, other=nothing)
    far = reverse_process.sample(denoiser, _noise(), hidden, steps=2, scale=4.0, other=nothing)
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, far)


def test_an_instant_s_embedding_is_zero_and_spans_differ() -> None:
    spans = span_embedding(torch.tensor([0.0, 0.1, 0.5, 1.0]))
    assert torch.equal(spans[0], torch.zeros_like(spans[0]))
    assert len({tuple(row.tolist()) for row in spans}) == 4


def test_the_derivative_is_that_of_finite_differences(
    denoiser: Denoiser, tokens: CLIPTokenizer
) -> None:
    hidden = denoiser.encode(tokenize(tokens, ["a fox"] * 3)).double()
    denoiser.unet.double().eval()
    torch.nn.init.normal_(denoiser.unet.time_embedding.cond_proj.weight, std=0.2)
    z, v = _noise(seed=1).double(), _noise(seed=2).double()
    r, t = torch.full((3,), 0.2).double(), torch.tensor([0.3, 0.5, 0.9]).double()
    with torch.no_grad():
        h = 3e-4  # the result is rounded to float32, which costs 1e-7 / h

        def u(shift: float) -> Tensor:
            return denoiser(z + shift * v, r, t + shift, hidden).double()

        expected = (u(h) - u(-h)) / (2 * h)
        found = few_steps.derivative(denoiser, z, r, t, v, hidden)
    assert torch.allclose(found.double(), expected, atol=2e-3, rtol=1e-2)


def test_of_instants_only_mean_flow_is_the_teacher_s_velocity(
    denoiser: Denoiser, tokens: CLIPTokenizer
) -> None:
    ids = tokenize(tokens, ["a fox"] * 3)
    networks = few_steps.Pupil(denoiser, denoiser)
    x, e, t = _noise(seed=1), _noise(seed=2), torch.tensor([0.2, 0.5, 0.8])
    # Guided by the caption itself, the teacher's velocity is its own: nothing is to be learnt.
    same = few_steps.mean_flow_loss(networks, (x, e, t, t, ids, ids))
    leap = few_steps.mean_flow_loss(networks, (x, e, t * 0.2, t, ids, ids))
    assert same == pytest.approx(0, abs=1e-3)
    assert leap > 10 * same


def _latents() -> training.Latents:
    rng = np.random.default_rng(0)
    part = rng.normal(size=(2, 4, 4, 4)).astype(np.float16)
    return training.Latents([part, part + 1], CAPTIONS, 1.0)


def test_latents_come_with_their_own_captions() -> None:
    shown = _latents()
    x, texts = shown.batch(64, np.random.default_rng(0))
    assert x.shape == (64, 4, 4, 4)
    for latents, caption in zip(x, texts, strict=True):
        scene = next(k for k, each in enumerate(CAPTIONS) if caption in each)
        part = shown._parts[scene // 2][scene % 2]
        assert np.array_equal(latents.numpy(), part.astype(np.float32))


def test_latents_without_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="captions"):
        training.Latents([np.zeros((3, 4, 4, 4), np.float16)], CAPTIONS, 1.0)


def test_captions_are_left_out_at_their_share() -> None:
    random = torch.Generator().manual_seed(0)
    found = learning.without_some(["a"] * 5000, random)
    assert found.count("") / 5000 == pytest.approx(learning.P_EMPTY, abs=0.02)


@pytest.mark.slow
def test_flow_matching_learns_resumes_and_few_steps_follow(
    tmp_path: Path, denoiser: Denoiser, tokens: CLIPTokenizer
) -> None:
    path, shown = tmp_path / "flow.ckpt", _latents()
    losses: list[str] = []
    options = {"log": losses.append, "processes": 1, "batch": 8}
    before = {name: p.clone() for name, p in denoiser.named_parameters()}
    snapshots: list[Denoiser] = []
    training.train(
        shown, denoiser, tokens, path, samples=160, snapshot=snapshots.append, snapshot_every=10,
        **options,
    )  # fmt: skip
    assert len(snapshots) == 1
    changed = [n for n, p in denoiser.named_parameters() if not torch.equal(p, before[n])]
    assert any(name.startswith("unet.") for name in changed)
    assert not any(name.startswith("text_encoder.") for name in changed)
    training.train(shown, denoiser, tokens, path, samples=176, **options)
    state = checkpoint.load(path)
    assert state is not None
    assert (state["step"], state["seen"]) == (22, 176)
    teacher = training.load(path, denoiser)
    few = tmp_path / "few-steps.ckpt"
    kept = {name: p.clone() for name, p in teacher.named_parameters()}
    training.train_few_steps(shown, teacher, tokens, few, samples=24, **options)
    assert all(torch.equal(p, kept[name]) for name, p in teacher.named_parameters())
    pupil = training.load(few, denoiser)
    assert any(not torch.equal(p, kept[name]) for name, p in pupil.named_parameters())


def test_the_pipeline_folder_reads_back(
    tmp_path: Path, denoiser: Denoiser, tokens: CLIPTokenizer
) -> None:
    pipeline.save(tmp_path / "out", denoiser, new_autoencoder(8), tokens)
    again = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    mine = denoiser.unet.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in again.state_dict().items())
    assert (tmp_path / "out" / "model_index.json").exists()
