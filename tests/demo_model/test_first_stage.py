"""The autoencoder learns, resumes, is measured honestly, and its latents are kept in shards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import checkpoint
from demo_model.first_stage import latents, measure, training
from demo_model.first_stage.losses import colour_targets, first_stage_loss, reconstruction_loss
from demo_model.first_stage.model import CHANNELS, FirstStage, new_autoencoder, to_images, to_tensor

WIDTH = 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _images(n: int = 6) -> np.ndarray:
    """Smooth ramps with a square each: something that can be learnt."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 255, 128)
    right, down = np.meshgrid(x, x)
    images = np.stack([np.stack([right, down, np.full_like(right, 30 * k)], -1) for k in range(n)])
    for image in images:
        a, b = rng.integers(20, 80, 2)
        image[a : a + 30, b : b + 30] = rng.integers(0, 255, 3)
    return images.astype(np.uint8)


def test_images_survive_the_way_to_tensors_and_back() -> None:
    images = _images(2)
    assert np.array_equal(to_images(to_tensor(torch.from_numpy(images))), images)


def test_latents_have_the_shape_that_the_denoiser_expects() -> None:
    z = new_autoencoder(WIDTH).encoder(to_tensor(torch.from_numpy(_images(1))))
    assert z.shape == (1, CHANNELS, 16, 16)


def test_colour_targets_are_means_of_cells() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    x[..., 8:] = -0.5
    targets = colour_targets(x)
    assert targets.shape == (1, 3, 2, 2)
    assert torch.equal(targets[0, :, 0, 0], targets[0, :, 1, 0])
    assert targets[0, 0, 0, 0] > targets[0, 0, 0, 1]


def test_reconstruction_loss_is_zero_for_equal_images_only() -> None:
    x = torch.rand(2, 3, 32, 32)
    assert reconstruction_loss(x, x) == 0
    assert reconstruction_loss(x + 0.1, x) > 0.3


def test_both_networks_get_gradients_and_the_opponent_none_from_the_autoencoder_s_wish() -> None:
    torch.manual_seed(0)
    model = FirstStage(WIDTH)
    crops = torch.from_numpy(_images(4)[:, :32, :32])
    first_stage_loss(model, (crops, torch.zeros(4))).backward()
    alone = [p.grad.clone() for p in model.discriminator.parameters()]
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    torch.manual_seed(0)
    with_wish = first_stage_loss(FirstStage(WIDTH), (crops, torch.ones(4)))
    torch.manual_seed(0)
    model = FirstStage(WIDTH)
    torch.manual_seed(1)
    first_stage_loss(model, (crops, torch.zeros(4))).backward()
    without = [p.grad.clone() for p in model.discriminator.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    first_stage_loss(model, (crops, torch.ones(4))).backward()
    for p, before in zip(model.discriminator.parameters(), without, strict=True):
        assert torch.allclose(p.grad, before, atol=1e-6)
    assert torch.isfinite(with_wish)
    assert len(alone) == len(without)


@pytest.mark.slow
def test_it_learns_and_resumes(tmp_path: Path) -> None:
    path, images = tmp_path / "first-stage.ckpt", _images()
    options = {"samples": 2400, "log": lambda _: None, "processes": 1, "width": WIDTH}
    before, _ = measure.reconstruction(new_autoencoder(WIDTH), images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "MEASURED", 1)
        training.train([images], path, **options)
        after, _ = measure.reconstruction(training.load(path, WIDTH), images)
        assert after["psnr_db"] > before["psnr_db"] + 2
        training.train([images], path, **options | {"samples": 2416})
    state = checkpoint.load(path)
    assert state is not None
    assert (state["step"], state["seen"]) == (151, 2416)


def test_what_is_not_trained_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="first-stage"):
        training.load(tmp_path / "first-stage.ckpt")


def test_edges_and_decibels() -> None:
    flat, striped = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
    striped[:, :, ::2] = 255
    assert measure.edge_energy(flat) == 0
    assert measure.edge_energy(striped) == pytest.approx(255)
    assert measure.psnr(flat, flat + 1)[0] == pytest.approx(48.13, abs=0.01)


def test_crops_prefer_detail() -> None:
    images = np.zeros((1, 128, 128, 3), np.uint8)
    images[:, :64] = np.random.default_rng(0).integers(0, 255, (1, 64, 128, 3))
    found = training.crops(images, np.random.default_rng(1), 40)
    assert found.shape == (40, 64, 64, 3)
    busy = np.mean([crop.std() > 40 for crop in found])
    assert busy > 0.6


def test_latent_shards_keep_order_and_captions(tmp_path: Path) -> None:
    model, images = new_autoencoder(WIDTH), _images(3)
    for k, name in enumerate(("000000003", "000000000")):
        entries = [{"captions": [f"{name} {i}"]} for i in range(3)]
        latents.write_shard(images[:: 1 - 2 * k], entries, model, tmp_path / name)
    parts, captions = latents.read(tmp_path)
    assert [part.shape for part in parts] == [(3, CHANNELS, 16, 16)] * 2
    assert captions[0] == ["000000000 0"]
    assert captions[3] == ["000000003 0"]
    factor = latents.scaling_factor(parts)
    assert np.concatenate(parts).astype(np.float32).std() * factor == pytest.approx(1, abs=0.01)
