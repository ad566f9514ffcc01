"""Every stage trains, resumes from what it wrote, and leaves a folder that diffusers reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import (
    autoencoder,
    captions,
    checkpoint,
    diffusion,
    text,
    tokenizer,
    words,
)
from demo_model.dataset import Concept
from demo_model.replicas import Replicas
from demo_model.variants import digest
from diffusers import AutoencoderTiny, DDIMScheduler
from transformers import CLIPTokenizer

CONCEPTS = [
    Concept(
        emoji=name, names=(name,), synonyms=(), weight=1.0, pictures=((k, "flat"), (k + 4, "3d"))
    )
    for k, name in enumerate(("apple", "fox", "heart", "sun"))
]
SHAPE = diffusion.Shape(
    channels=(16, 32), attention=(False, True), heads=2, groups=8, latent_channels=8, latent_size=4,
    text_encoder=text.Shape(width=16, layers=1, heads=2),
)  # fmt: skip


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)


def _tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 5,
        decoder_block_out_channels=(8,) * 5,
        num_encoder_blocks=(1,) * 5,
        num_decoder_blocks=(1,) * 5,
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks as small as these spend their time waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(captions.corpus(CONCEPTS), folder)
    return tokenizer.load(folder)


def _train(
    folder: Path, tokens: CLIPTokenizer, seconds: float, *, few_step: bool = False
) -> Mapping[str, float]:
    figures = diffusion.train(
        torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(0)),
        CONCEPTS,
        tokens,
        folder,
        minutes=seconds / 60,
        log=lambda _: None,
        start=diffusion.Networks(SHAPE, tokens),
        shape=SHAPE,
        batch=4,
        processes=1,
        few_step=few_step,
    )
    assert figures["samples"] == 4 * figures["steps"]
    return figures


@pytest.mark.parametrize("few_step", [False, True])
def test_diffusion_resumes_and_then_has_nothing_left_to_do(
    tmp_path: Path, tokens: CLIPTokenizer, few_step: bool
) -> None:
    first = _train(tmp_path, tokens, 0.1, few_step=few_step)
    assert first["steps"] >= 1
    second = _train(tmp_path, tokens, first["seconds"] + 0.1, few_step=few_step)
    assert second["steps"] > first["steps"]
    assert second["seconds"] > first["seconds"]
    # A little less: seconds do not survive the way through minutes to the last bit.
    assert _train(tmp_path, tokens, second["seconds"] * 0.999, few_step=few_step) == second


def test_autoencoder_resumes_and_its_decoder_trains_on_alone(tmp_path: Path) -> None:
    def train(seconds: float, *, finetune: bool = False) -> AutoencoderTiny:
        autoencoder.train(
            _images(),
            tmp_path,
            minutes=seconds / 60,
            log=lambda _: None,
            processes=1,
            finetune=finetune,
            new=_tiny_autoencoder,
        )
        return autoencoder.load(tmp_path, _tiny_autoencoder)

    train(0.1)
    first = checkpoint.load(tmp_path / "autoencoder.ckpt")
    assert first is not None
    before = train(first["seconds"] + 0.1)
    second = checkpoint.load(tmp_path / "autoencoder.ckpt")
    assert second is not None
    assert second["step"] > first["step"]
    after = train(0.1, finetune=True)
    latents = [autoencoder.encode(model, _images()) for model in (before, after)]
    assert latents[0].shape == (8, 4, 6, 6)
    assert torch.equal(latents[0], latents[1])
    with torch.no_grad():
        assert not torch.equal(before.decoder(latents[0]), after.decoder(latents[0]))


def test_autoencoder_cannot_be_tuned_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the autoencoder first"):
        autoencoder.train(
            _images(), tmp_path, minutes=1, log=lambda _: None, finetune=True,
            new=_tiny_autoencoder, processes=1,
        )  # fmt: skip


def test_noising_matches_diffusers_and_ends_in_pure_noise() -> None:
    scheduler = diffusion.new_scheduler()
    x0, noise = torch.randn(2, 3, 4, 4, 4).unbind(0)
    t = torch.tensor([0, 500, 999])
    x_t, v, weight = diffusion.noised(x0, t, noise, scheduler.alphas_cumprod)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, noise, t))
    torch.testing.assert_close(v, scheduler.get_velocity(x0, noise, t))
    torch.testing.assert_close(x_t[2], noise[2])
    assert (weight > 0).all()
    assert (weight <= 1).all()


def test_pipeline_folder_is_whole_and_plain(tmp_path: Path, tokens: CLIPTokenizer) -> None:
    networks = diffusion.Networks(SHAPE, tokens)
    for _ in range(2):  # the second replaces the first
        diffusion.save_pipeline(tmp_path / "pipeline", networks, _tiny_autoencoder(), tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    weights = [p for p in (tmp_path / "pipeline").rglob("*") if p.stat().st_size > 100_000]
    assert all(path.suffix == ".safetensors" for path in weights)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "pipeline" / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    assert checkpoint.load(path) is None
    for step in (1, 2):
        checkpoint.save(path, {"step": step})
        assert checkpoint.load(path) == {"step": step}
    assert [p.name for p in tmp_path.iterdir()] == ["state.ckpt"]


def _square(module: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return module(batch[0]).square().mean()


def test_one_replica_gives_plain_gradients() -> None:
    module = torch.nn.Linear(3, 2)
    x = np.ones((4, 3), np.float32)
    value = Replicas(module, _square, 1, seed=0).backward((x,))
    grads = [p.grad.clone() for p in module.parameters()]
    expected = _square(module, (torch.from_numpy(x),))
    assert value == pytest.approx(expected.item())
    for got, want in zip(
        grads, torch.autograd.grad(expected, list(module.parameters())), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.slow
def test_two_replicas_give_the_gradients_of_one(tokens: CLIPTokenizer) -> None:
    torch.manual_seed(0)
    networks = diffusion.Networks(SHAPE, tokens)
    x_t, v = torch.randn(2, 4, 8, 4, 4).numpy()
    batch = (
        x_t,
        np.array([10, 300, 600, 999]),
        text.tokenize(tokens, ["a fox", "", "the sun", "heart, 3d"]).numpy(),
        v,
        np.ones(4, np.float32),
    )
    results = []
    for processes in (1, 2):
        replicas = Replicas(networks, diffusion.loss, processes, seed=0)
        value = replicas.backward(batch)
        replicas.close()
        trained = [p for p in networks.parameters() if p.requires_grad]  # not the text encoder
        results.append((value, [p.grad.clone() for p in trained]))
    (one, alone), (two, together) = results
    assert two == pytest.approx(one, rel=1e-2)  # bfloat16
    flat_alone, flat_together = (torch.cat([g.flatten() for g in gs]) for gs in (alone, together))
    assert torch.cosine_similarity(flat_alone, flat_together, dim=0) > 0.999


def test_four_steps_are_those_of_trailing_spacing() -> None:
    scheduler = diffusion.new_scheduler()
    scheduler.set_timesteps(diffusion.FEW)
    assert diffusion.four_steps() == scheduler.timesteps.tolist()
    drawn = diffusion.draw_timesteps(4000, 1000, torch.Generator().manual_seed(0))
    assert (drawn == 999).float().mean() == pytest.approx(diffusion.P_LAST, abs=0.03)


def test_a_step_is_diffusers_ddim() -> None:
    scheduler = diffusion.new_scheduler()
    scheduler.set_timesteps(diffusion.FEW)
    x_t, v = torch.randn(2, 3, 8, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    a = scheduler.alphas_cumprod
    expected = scheduler.step(v, 749, x_t).prev_sample
    torch.testing.assert_close(diffusion.ddim_step(x_t, v, a[749], a[499]), expected)


class _Exact(diffusion.Networks):
    """Finds the picture that a text's first number names whatever the noise, plus `off`."""

    def __init__(self, pictures: torch.Tensor, off: float = 0.0) -> None:
        torch.nn.Module.__init__(self)
        self.pictures, self.off = pictures, off
        self.emphasis = torch.eye(pictures[0].numel())
        self.alphas_cumprod = diffusion.new_scheduler().alphas_cumprod

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def denoise(self, x_t: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        x0 = self.pictures[rows[:, 0]] + self.off
        return (a.sqrt() * x_t - x0) / (1 - a).sqrt()


def test_few_step_loss_is_the_distance_to_the_drawing_after_any_step() -> None:
    noise, x0 = torch.randn(2, 4, 8, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    a = diffusion.new_scheduler().alphas_cumprod
    batch = (noise, torch.arange(4)[:, None], x0, torch.arange(4), a.expand(4, -1))

    def loss(off: float) -> float:
        return diffusion.few_step_loss(_Exact(x0, off), batch).item()

    assert loss(0.0) == pytest.approx(0, abs=1e-4)
    assert loss(1.0) == pytest.approx((1 + 0.03**2) ** 0.5 - 0.03, rel=0.01)


def test_few_steps_start_from_weights_that_are_given(tmp_path: Path, tokens: CLIPTokenizer) -> None:
    start = diffusion.Networks(SHAPE, tokens)
    figures = diffusion.train(
        torch.zeros(8, 8, 4, 4),
        CONCEPTS,
        tokens,
        tmp_path,
        minutes=0,
        log=lambda _: None,
        shape=SHAPE,
        processes=1,
        few_step=True,
        start=start,
    )
    assert figures["steps"] == 0
    loaded = diffusion.load_average(tmp_path, tokens, SHAPE).state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(loaded[name], value)


def _teacher(texts: Sequence[str]) -> torch.Tensor:
    """Vectors that depend on the text alone."""
    rows = [np.random.default_rng(digest(t)).standard_normal(384) for t in texts]
    return torch.nn.functional.normalize(torch.tensor(np.stack(rows)).float(), dim=-1)


def _first_concept(words: Sequence[str], _: torch.Tensor) -> torch.Tensor:
    """Whatever the word, it means the first concept."""
    return torch.tensor([1.0] + [0.0] * (len(CONCEPTS) - 1)).expand(len(words), -1)


def test_drawings_are_told_apart_by_their_components() -> None:
    latents = torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    drawings = text.Drawings(latents, CONCEPTS)
    flat, solid = captions.STYLES.index("flat"), captions.STYLES.index("3d")
    one, other = (drawings.get(CONCEPTS[0], style) for style in (flat, solid))
    assert one is not None
    assert other is not None
    assert drawings.get(CONCEPTS[0], text.NO_STYLE) == pytest.approx((one + other) / 2, abs=1e-6)
    assert drawings.get(CONCEPTS[0], captions.STYLES.index("retro")) is None
    # Seven components hold all that eight drawings differ in.
    centred = latents.flatten(1) - latents.flatten(1).mean(0)
    scale = centred.square().sum(1).mean()
    expected = (centred[0] - centred[4]).square().sum() / scale
    assert np.square(one - other).sum() == pytest.approx(expected.item(), rel=1e-3)


def test_padding_is_trained_at_places_that_ascend_after_the_text() -> None:
    end = 9
    ids = torch.full((3, 24), end)
    ids[0, :3], ids[1, :8], ids[2] = 1, 2, torch.arange(24) % 9
    ids[2, -1] = end
    shorter, places = text.cut(ids[:2])
    assert shorter.shape == places.shape == (2, 9 + text.PADS)
    assert places[0, :4].tolist() == [0, 1, 2, 3]
    assert places[1, :9].tolist() == list(range(9))
    for row, ends in zip(places, (3, 8), strict=True):
        assert (row[ends : ends + 1 + text.PADS].diff() > 0).all()
    whole, places = text.cut(ids)
    assert torch.equal(whole, ids)
    assert places.max() == 23
    assert places[2].tolist() == list(range(24))


def test_a_new_text_encoder_is_read_like_the_old_one(tokens: CLIPTokenizer) -> None:
    networks = diffusion.Networks(SHAPE, tokens)
    before = text.new_encoder(tokens, SHAPE.text_encoder).eval()
    before.load_state_dict(networks.text_encoder.state_dict())
    ids = text.tokenize(tokens, captions.some(CONCEPTS))
    x_t, t = torch.randn(len(ids), 8, 4, 4), torch.full((len(ids),), 999)
    with torch.no_grad():
        expected = networks(x_t, t, ids)
        # The same states, turned: a map of them gives the old ones back.
        turn = torch.linalg.qr(torch.randn(16, 16)).Q
        last = networks.text_encoder.text_model.final_layer_norm
        forward = last.forward
        last.forward = lambda x: forward(x) @ turn  # type: ignore[method-assign]
        without = networks(x_t, t, ids)
        diffusion.refit(networks, before, ids)
        refitted = networks(x_t, t, ids)
    assert (refitted - expected).square().mean() < 0.1 * (without - expected).square().mean()


def test_text_encoder_learns_what_captions_mean_and_is_then_frozen(
    tmp_path: Path, tokens: CLIPTokenizer
) -> None:
    shape = SHAPE.text_encoder
    student = text.Student(tokens, len(CONCEPTS), shape)
    latents = torch.randn(8, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    texts = text.Texts(
        CONCEPTS, _teacher, _first_concept, ["pear", "moon"],
        text.Drawings(latents, CONCEPTS), np.random.default_rng(0),
    )  # fmt: skip
    assert texts.meanings() == {"apple": ["moon", "pear"]}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        batch = tuple(torch.from_numpy(part) for part in texts.batch(tokens, 32))
        value = text.loss(student, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    checkpoint.save(tmp_path / "text.ckpt", {"student": student.state_dict()})
    assert text.recall(CONCEPTS, tokens, tmp_path, shape)["names"] == 1
    networks = diffusion.beginning(tmp_path, tokens, shape=SHAPE)
    assert not any(p.requires_grad for p in networks.text_encoder.parameters())
    torch.testing.assert_close(networks.text_encoder.state_dict(), student.encoder.state_dict())


def test_errors_of_fine_components_count_more() -> None:
    random = torch.Generator().manual_seed(0)
    deviations = torch.tensor([4.0, 1.0, 0.25, 0.0])
    latents = torch.randn((4000, 4, 1, 1), generator=random) * deviations.view(4, 1, 1)
    found = diffusion.emphasis(latents)
    torch.testing.assert_close(found, found.T)
    along = found.diagonal()
    assert along[:3] / along[0] == pytest.approx([1, 2, 4], rel=0.1)
    assert torch.isfinite(along).all()
    errors = latents.flatten(1)
    weighted = (errors @ found).square().mean()
    assert weighted == pytest.approx(errors.square().mean().item(), rel=0.01)


def test_further_words_are_to_get_the_states_of_the_name(
    tmp_path: Path, tokens: CLIPTokenizer
) -> None:
    encoder = text.new_encoder(tokens, SHAPE.text_encoder).eval()
    former = text.new_encoder(tokens, SHAPE.text_encoder)
    former.load_state_dict(encoder.state_dict())
    word, name = (text.tokenize(tokens, [c]) for c in ("a reynard", "a fox"))
    pair = words.Pair(encoder, former)
    far = words.loss(pair, (word, name))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    for _ in range(30):
        value = words.loss(pair, (word, name))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.5 * far
    student = text.Student(tokens, len(CONCEPTS), SHAPE.text_encoder)
    checkpoint.save(tmp_path / "text.ckpt", {"student": student.state_dict()})
    words.teach(
        encoder, CONCEPTS, {"fox": ["reynard"]}, tokens, tmp_path,
        minutes=0.001, log=lambda _: None, processes=1,
    )  # fmt: skip
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_house_style_is_the_first_that_was_drawn() -> None:
    fox = replace(CONCEPTS[0], pictures=((0, "3d"), (1, "simple"), (2, "flat")))
    assert words.house_style(fox) == "flat"
    assert words.house_style(replace(fox, pictures=((0, "3d"), (1, "simple")))) == "simple"
    assert words.house_style(replace(fox, pictures=((0, "retro"), (1, "3d")))) == "retro"
