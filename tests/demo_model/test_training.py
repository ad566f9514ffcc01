"""Every stage trains, resumes from what it wrote, and leaves a folder that diffusers reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import autoencoder, captions, checkpoint, diffusion, tokenizer
from demo_model.dataset import Concept
from demo_model.replicas import Replicas
from diffusers import AutoencoderTiny, DDIMScheduler
from transformers import CLIPTokenizer

CONCEPTS = [
    Concept(
        emoji="x", names=(name,), synonyms=(), weight=1.0, pictures=((k, "flat"), (k + 4, "3d"))
    )
    for k, name in enumerate(("apple", "fox", "heart", "sun"))
]
SHAPE = diffusion.Shape(
    channels=(16, 32), attention=(False, True), heads=2, groups=8, text_width=16, text_layers=1,
    text_heads=2, latent_size=4,
)  # fmt: skip


def _images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


def _tiny_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
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


def _train(folder: Path, tokens: CLIPTokenizer, seconds: float) -> Mapping[str, float]:
    figures = diffusion.train(
        torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0)),
        CONCEPTS,
        tokens,
        folder,
        minutes=seconds / 60,
        log=lambda _: None,
        shape=SHAPE,
        batch=4,
        processes=1,
    )
    assert figures["samples"] == 4 * figures["steps"]
    return figures


def test_diffusion_resumes_and_then_has_nothing_left_to_do(
    tmp_path: Path, tokens: CLIPTokenizer
) -> None:
    first = _train(tmp_path, tokens, 0.1)
    assert first["steps"] >= 1
    second = _train(tmp_path, tokens, first["seconds"] + 0.1)
    assert second["steps"] > first["steps"]
    assert second["seconds"] > first["seconds"]
    # A little less: seconds do not survive the way through minutes to the last bit.
    assert _train(tmp_path, tokens, second["seconds"] * 0.999) == second


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
    assert latents[0].shape == (8, 4, 4, 4)
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
    x_t, v = torch.randn(2, 4, 4, 4, 4).numpy()
    batch = (
        x_t,
        np.array([10, 300, 600, 999]),
        diffusion.tokenize(tokens, ["a fox", "", "the sun", "heart, 3d"]).numpy(),
        v,
        np.ones(4, np.float32),
    )
    results = []
    for processes in (1, 2):
        replicas = Replicas(networks, diffusion.loss, processes, seed=0)
        value = replicas.backward(batch)
        replicas.close()
        results.append((value, [p.grad.clone() for p in networks.parameters()]))
    (one, alone), (two, together) = results
    assert two == pytest.approx(one, rel=1e-2)  # bfloat16
    flat_alone, flat_together = (torch.cat([g.flatten() for g in gs]) for gs in (alone, together))
    assert torch.cosine_similarity(flat_alone, flat_together, dim=0) > 0.999


def test_focus_starts_from_weights_that_are_given(tmp_path: Path, tokens: CLIPTokenizer) -> None:
    start = diffusion.Networks(SHAPE, tokens)
    figures = diffusion.train(
        torch.zeros(8, 4, 4, 4),
        CONCEPTS,
        tokens,
        tmp_path,
        minutes=0,
        log=lambda _: None,
        shape=SHAPE,
        processes=1,
        name="focus",
        start=start,
    )
    assert figures["steps"] == 0
    loaded = diffusion.load_average(tmp_path, tokens, SHAPE).state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(loaded[name], value)
