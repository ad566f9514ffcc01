"""Loading and generating with a bundle of random weights: torch-free."""

import itertools
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgediff
from edgediff import pipeline as pipeline_module
from edgediff.backend import available
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, InputError, ProviderError
from edgediff.networks.autoencoder import Vae
from edgediff.pipeline import Pipeline
from edgediff.sampling.samplers import SAMPLERS


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_defaults_come_from_the_bundle(pipe: Pipeline) -> None:
    result = pipe.generate("a fox", seed=0)
    assert result.settings.steps == pipe.defaults.steps
    assert result.settings.sampler == pipe.defaults.sampler
    assert result.settings.guidance_scale == pipe.defaults.guidance_scale
    assert result.images[0].size == (pipe.defaults.width, pipe.defaults.height)
    assert result.images[0].mode == "RGB"
    assert result.seeds == [0]
    assert result.settings.provider == pipe.provider == "cpu"
    assert len(result.timings.steps) == pipe.defaults.steps
    assert result.timings.total >= sum(result.timings.steps)


def test_the_same_seed_gives_the_same_image_and_another_another(pipe: Pipeline) -> None:
    a, b, c = (pipe.generate("a fox", seed=s, steps=2).images[0] for s in (7, 7, 8))
    assert (pixels(a) == pixels(b)).all()
    assert (pixels(a) != pixels(c)).any()


def test_no_seed_draws_one_and_tells_which(pipe: Pipeline) -> None:
    first, second = (pipe.generate("a fox", steps=1) for _ in range(2))
    assert first.seeds != second.seeds
    again = pipe.generate("a fox", steps=1, seed=first.seeds[0])
    assert (pixels(again.images[0]) == pixels(first.images[0])).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_of_four_equals_four_single_runs(pipe: Pipeline, sampler: str) -> None:
    seeds = [0, 3, 2**40, -1]
    batch = pipe.generate("a fox", seed=seeds, steps=3, sampler=sampler)
    assert batch.seeds == seeds
    for seed, image in zip(seeds, batch.images, strict=True):
        single = pipe.generate("a fox", seed=seed, steps=3, sampler=sampler)
        assert (pixels(image) == pixels(single.images[0])).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_finite(pipe: Pipeline, sampler: str, steps: int) -> None:
    last = list(pipe.stream("a fox", seed=0, steps=steps, sampler=sampler))[-1]
    assert np.isfinite(last.latents).all()
    assert last.latents.dtype == np.float32


def test_zero_is_a_value_not_unset(pipe: Pipeline) -> None:
    result = pipe.generate("a fox", seed=0, guidance_scale=0, steps=1)
    assert result.settings.guidance_scale == 0
    one = pipe.generate("a fox", seed=0, guidance_scale=1, steps=1)
    assert (pixels(result.images[0]) == pixels(one.images[0])).all()


@pytest.mark.parametrize(("guidance", "evaluations"), [(0, 1), (1, 1), (1.01, 2), (7.5, 2)])
def test_no_guidance_costs_nothing(pipe: Pipeline, guidance: float, evaluations: int) -> None:
    rows: dict[str, list[int]] = {"unet": [], "text_encoder": [], "vae_decoder": []}

    def counting(run_stage: RunStage) -> RunStage:
        def count(stage: str, inputs: dict[str, Any]) -> Any:
            rows[stage].append(len(next(iter(inputs.values()))))
            return run_stage(stage, inputs)

        return count

    request = pipe.resolve("a fox", seed=0, guidance_scale=guidance, steps=2)
    pipe.run(request, wrap=counting).result()
    assert rows["unet"] == [evaluations] * 2
    assert len(rows["text_encoder"]) == evaluations


def test_the_negative_prompt_steers_under_guidance_only(pipe: Pipeline) -> None:
    def latents(**arguments: Any) -> np.ndarray:
        return list(pipe.stream("a fox", seed=0, steps=2, **arguments))[-1].latents

    plain = latents(guidance_scale=5)
    assert (latents(guidance_scale=5, negative_prompt="") == plain).all()
    assert (latents(guidance_scale=5, negative_prompt="blue") != plain).any()
    without = latents(guidance_scale=1)
    assert (latents(guidance_scale=1, negative_prompt="blue") == without).all()


def test_stream_yields_each_step_and_ends_where_generate_does(pipe: Pipeline) -> None:
    steps = list(pipe.stream("a fox", seed=[1, 2], steps=3))
    assert [s.index for s in steps] == [0, 1, 2]
    assert steps[-1].sigma == 0
    assert all(a.sigma > b.sigma for a, b in itertools.pairwise(steps))
    assert steps[0].latents.shape == steps[0].x0.shape == (2, 4, 8, 8)
    generated = pipe.generate("a fox", seed=[1, 2], steps=3).images
    for mine, theirs in zip(pipe.decode(steps[-1].latents), generated, strict=True):
        assert (pixels(mine) == pixels(theirs)).all()


def test_a_run_can_be_abandoned_and_costs_nothing_then(pipe: Pipeline) -> None:
    runs: list[str] = []

    def noting(run_stage: RunStage) -> RunStage:
        return lambda stage, inputs: (runs.append(stage), run_stage(stage, inputs))[1]

    run = pipe.run(pipe.resolve("a fox", seed=0, steps=50, guidance_scale=1), wrap=noting)
    next(run)
    del run
    assert runs.count("unet") == 1


def test_stream_checks_its_arguments_at_the_call(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="`steps` is 0"):
        pipe.stream("a fox", steps=0)


def test_an_exception_from_on_step_ends_the_run(pipe: Pipeline) -> None:
    class CancelledError(Exception):
        pass

    seen = []

    def cancel(step: edgediff.Step) -> None:
        seen.append(step.index)
        if step.index == 1:
            raise CancelledError

    with pytest.raises(CancelledError):
        pipe.generate("a fox", seed=0, steps=10, on_step=cancel)
    assert seen == [0, 1]


def test_threads_of_one_pipeline_do_not_disturb_each_other(pipe: Pipeline) -> None:
    alone = {s: pixels(pipe.generate("a fox", seed=s, steps=3).images[0]) for s in range(4)}
    together: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        together[seed] = pixels(pipe.generate("a fox", seed=seed, steps=3).images[0])

    workers = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((together[s] == alone[s]).all() for s in range(4))


@pytest.mark.parametrize("size", [(64, 128), (128, 64), 96])
def test_sizes(pipe: Pipeline, size: int | tuple[int, int]) -> None:
    result = pipe.generate("a fox", seed=0, steps=1, size=size)
    expected = size if isinstance(size, tuple) else (size, size)
    assert result.images[0].size == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 7}, "`prompt` is int"),
        ({"prompt": None}, "`prompt` is NoneType"),
        ({"prompt": b"fox"}, "`prompt` is bytes"),
        ({"prompt": "\ud800"}, "not valid text"),
        ({"negative_prompt": 7}, "`negative_prompt` is int"),
        ({"negative_prompt": 0}, "`negative_prompt` is int"),
        ({"negative_prompt": "\udcff", "guidance_scale": 1}, "`negative_prompt` is not valid text"),
        ({"size": (63, 64)}, "multiples of"),
        ({"size": (0, 64)}, "multiples of"),
        ({"size": (-64, 64)}, "multiples of"),
        ({"size": (10**9, 64)}, "at most 4096"),
        ({"size": (64.0, 64)}, "whole numbers"),
        ({"size": (64,)}, "expected .width, height."),
        ({"size": (64, None)}, "whole numbers"),
        ({"size": 64.0}, "whole numbers"),
        ({"size": "64x64"}, "whole numbers"),
        ({"steps": 0}, "`steps` is 0"),
        ({"steps": -1}, "`steps` is -1"),
        ({"steps": 2.5}, "`steps` is 2.5"),
        ({"steps": 1001}, "`steps` is 1001"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` is nan"),
        ({"guidance_scale": "7"}, "`guidance_scale` is '7'"),
        ({"guidance_scale": 1e300}, "`guidance_scale` is 1e.300: expected a number"),
        ({"guidance_scale": 10**400}, "from -1000 to 1000"),
        ({"sampler": "magic"}, "'magic': choose one of euler"),
        ({"sampler": "euler", "spacing": "even"}, "'even': choose one of karras, exponential"),
        ({"sampler": "euler", "spacing": ["beta"]}, "`spacing` is list"),
        ({"sampler": "lcm", "spacing": "karras"}, "sampler lcm takes none: use euler"),
        ({"guidance_rescale": 1.5}, "`guidance_rescale` is 1.5"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval=.0.8, 0.2."),
        ({"guidance_interval": 0.8}, "guidance_interval=0.8"),
        (
            {"guidance_interval": (0.4, 0.45), "guidance_scale": 3, "steps": 4},
            r"guidance_interval=\(0.4, 0.45\)`: none of 4 steps begins there",
        ),
        ({"variation_seed": 1}, "give `variation_strength` too"),
        ({"variation_strength": 0.2}, "give `variation_seed` too"),
        ({"variation_seed": 1.5, "variation_strength": 0.2}, "`variation_seed` is 1.5"),
        ({"variation_seed": 1, "variation_strength": 2}, "`variation_strength` is 2"),
        ({"seed": []}, "`seed` is an empty list"),
        ({"seed": 2**64}, "`seed` is"),
        ({"seed": 1.5}, "`seed` is"),
        ({"seed": ["a"]}, "`seed` is"),
    ],
)
def test_bad_arguments(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pipe.generate(**{"prompt": "a fox", "steps": 1, **arguments})
    assert isinstance(caught.value, ValueError)


def test_a_cut_prompt_is_reported(pipe: Pipeline) -> None:
    limit = pipe.generate("", seed=0, steps=1).prompt.limit
    text = "a" * limit + " then the rest"
    report = pipe.generate(text, negative_prompt=text, seed=0, steps=1, guidance_scale=2).prompt
    assert report.tokens > report.limit == limit
    assert report.truncated
    assert text.endswith(report.truncated)
    assert report.negative_truncated == report.truncated
    assert pipe.generate("a fox", seed=0, steps=1).prompt.truncated == ""


def test_results_are_saved_with_their_settings(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate("a fox", negative_prompt="blue", seed=[5, 6], steps=2)
    paths = result.save(tmp_path / "fox.png")
    assert [p.name for p in paths] == ["fox-5.png", "fox-6.png"]
    for path, seed, image in zip(paths, result.seeds, result.images, strict=True):
        with Image.open(path) as read:
            assert (pixels(read) == pixels(image)).all()
            record = json.loads(read.info["edgediff"])
        again = pipe.generate(
            record["prompt"],
            negative_prompt=record["negative_prompt"],
            steps=record["steps"],
            guidance_scale=record["guidance_scale"],
            sampler=record["sampler"],
            size=(record["width"], record["height"]),
            seed=record["seed"],
        )
        assert record["seed"] == seed
        assert record["bundle"] == pipe.bundle.id
        assert (pixels(again.images[0]) == pixels(image)).all()


def test_numpy_numbers_are_numbers(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate(
        "a fox",
        seed=np.arange(2),
        steps=np.int64(2),
        size=(np.int64(64), np.int32(64)),
        guidance_scale=np.float32(2),
    )
    assert [p.name for p in result.save(tmp_path / "a.png")] == ["a-0.png", "a-1.png"]


def test_a_seed_that_comes_again_overwrites_nothing(pipe: Pipeline, tmp_path: Path) -> None:
    paths = pipe.generate("a fox", seed=[1, 1, 1], steps=1).save(tmp_path / "a.png")
    assert [p.name for p in paths] == ["a-1.png", "a-1-2.png", "a-1-3.png"]
    assert all(p.exists() for p in paths)


def test_only_formats_that_hold_a_record_are_written(pipe: Pipeline, tmp_path: Path) -> None:
    result = pipe.generate("a fox", seed=0, steps=1)
    with pytest.raises(InputError, match=r"ends in \.png, \.jpg or \.webp"):
        result.save(tmp_path / "a.gif")
    with pytest.raises(InputError, match=r"cannot be written to .*null (byte|character)"):
        result.save("a\0.png")


def test_auto_says_what_it_passed_over(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_providers(damaged, ["cuda", "cpu"])
    real = pipeline_module.Pipeline

    def refuse(bundle: Any, options: Any, **arguments: Any) -> Pipeline:
        if options.provider == "cuda":
            raise ProviderError("provider 'cuda' did not start")
        return real(bundle, options, **arguments)

    monkeypatch.setattr(pipeline_module, "is_installed", lambda _: True)
    monkeypatch.setattr(pipeline_module, "why_missing", lambda _: None)
    monkeypatch.setattr(pipeline_module, "Pipeline", refuse)
    pipe = edgediff.load(damaged)
    assert pipe.provider == "cpu"
    assert pipe.skipped_providers == ("provider 'cuda' did not start",)


def test_auto_passes_over_a_plug_in_without_a_device(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OpenVINO bundle on a processor that the plug-in does not take."""
    set_providers(damaged, ["openvino", "cpu"])
    monkeypatch.setattr(available, "_register", lambda _: None)
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: object())
    pipe = edgediff.load(damaged)
    assert pipe.provider == "cpu"
    (reason,) = pipe.skipped_providers
    assert reason.startswith("provider 'openvino': installed, but it finds no device")


def test_auto_does_not_look_beyond_the_one_that_runs(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in's library is large: it is not loaded where an earlier provider will do."""
    set_providers(damaged, ["cpu", "openvino"])
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(available, "_register", lambda _: pytest.fail("loaded"))
    pipe = edgediff.load(damaged)
    assert (pipe.provider, pipe.skipped_providers) == ("cpu", ())


def test_what_is_not_installed_is_not_mentioned(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_providers(damaged, ["openvino", "cpu"])
    monkeypatch.setattr(available.importlib.util, "find_spec", lambda _: None)
    assert edgediff.load(damaged).skipped_providers == ()


@pytest.mark.parametrize("asked", [None, False, "there"])
def test_where_compiled_graphs_are_kept(
    asked: Any, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_providers(damaged, ["openvino"])
    default = tmp_path / "cache" / "edgediff"
    seen: list[Path | None] = []

    def record(_bundle: Any, options: Any, **_: Any) -> Any:
        seen.append(options.cache_dir)
        raise ProviderError("enough")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pipeline_module, "Pipeline", record)
    with pytest.raises(ProviderError, match="enough"):
        edgediff.load(damaged, provider="openvino", cache_dir=asked)
    with pytest.raises(ProviderError, match="enough"):
        edgediff.load(damaged, provider="cpu")
    bundle_id = Bundle.open(damaged).id
    folders = {None: default, "there": Path("there").absolute()}
    expected = folders[asked] / bundle_id[:16] if asked in folders else None
    assert seen == [expected, None]
    assert not default.exists()


def test_close_frees_and_the_next_call_loads_again(tiny_bundle: Path) -> None:
    with edgediff.load(tiny_bundle, threads=1) as pipe:
        before = pixels(pipe.generate("a fox", seed=0, steps=1).images[0])
    assert (pixels(pipe.generate("a fox", seed=0, steps=1).images[0]) == before).all()


@pytest.fixture
def damaged(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("name", ["unet.onnx", "tokenizer.json", "vae_decoder.onnx"])
def test_a_damaged_file_is_noticed_while_loading(damaged: Path, name: str) -> None:
    data = bytearray((damaged / name).read_bytes())
    data[len(data) // 3] ^= 0x55
    (damaged / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: sha256"):
        edgediff.load(damaged)


def test_files_of_two_bundles_swapped(damaged: Path) -> None:
    """Sizes and hashes made to fit, as by hand: the graphs themselves give it away."""
    manifest = json.loads((damaged / MANIFEST).read_text())
    files = manifest["files"]
    files["unet.onnx"], files["vae_decoder.onnx"] = files["vae_decoder.onnx"], files["unet.onnx"]
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    (damaged / "unet.onnx").rename(damaged / "other")
    (damaged / "vae_decoder.onnx").rename(damaged / "unet.onnx")
    (damaged / "other").rename(damaged / "vae_decoder.onnx")
    with pytest.raises(BundleError, match="the files of two bundles were mixed"):
        edgediff.load(damaged)


def test_values_that_are_not_finite_are_an_error_not_a_black_image(pipe: Pipeline) -> None:
    def run_stage(*_: Any) -> dict[str, np.ndarray]:
        return {"sample": np.full((1, 3, 64, 64), np.nan, np.float32)}

    vae = Vae(pipe.bundle.manifest, run_stage, pipe.provider)
    with pytest.raises(ProviderError, match="not finite"):
        vae.decode(np.zeros((1, 4, 8, 8), np.float32))


def set_providers(bundle: Path, providers: list[str]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["providers"] = providers
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("made_for", "installed", "chosen"),
    [
        (["cuda", "cpu"], {"cpu"}, "cpu"),
        (["cpu", "cuda"], {"cpu", "cuda"}, "cpu"),
        (["unheard_of", "cpu"], {"cpu"}, "cpu"),
    ],
)
def test_auto_takes_the_first_that_is_installed(
    damaged: Path,
    monkeypatch: pytest.MonkeyPatch,
    made_for: list[str],
    installed: set[str],
    chosen: str,
) -> None:
    set_providers(damaged, made_for)
    fake: Callable[[str], str | None] = lambda p: None if p in installed else "absent"  # noqa: E731
    monkeypatch.setattr(pipeline_module, "why_missing", fake)
    assert edgediff.load(damaged).provider == chosen


def test_auto_with_nothing_installed_says_what_to_install(damaged: Path) -> None:
    set_providers(damaged, ["coreml"])
    with pytest.raises(ProviderError, match=r"coreml: .*pip install"):
        edgediff.load(damaged)


def test_an_unknown_provider(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="expected auto or one of cpu"):
        edgediff.load(tiny_bundle, provider="gpu")


def test_a_name_that_is_no_bundle() -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        edgediff.load("no-such-model")


def test_the_built_in_models_name_is_not_taken_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    built_in = pipeline_module.find_bundle("emoji")
    assert built_in.parent.parent == Path(edgediff.__file__).parent
    assert pipeline_module.find_bundle("./emoji") == Path("emoji")
    assert pipeline_module.find_bundle(Path("emoji")) == Path("emoji")


def test_every_option_of_sampling_is_recorded_and_repeats(pipe: Pipeline, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 3,
        "guidance_scale": 4.0,
        "sampler": "heun",
        "spacing": "karras",
        "guidance_rescale": 0.7,
        "guidance_interval": (0.0, 0.5),
        "variation_seed": 9,
        "variation_strength": 0.3,
    }
    result = pipe.generate("a fox", seed=4, **options)
    for name, value in options.items():
        assert getattr(result.settings, name) == value
    (path,) = result.save(tmp_path / "a.png")
    made = edgediff.recorded(path)
    again = pipe.generate(made.prompt, **made.options)
    assert again.settings == result.settings
    assert (pixels(again.images[0]) == pixels(result.images[0])).all()
    with Image.open(path) as image:
        text = image.info["parameters"]
    assert "Sampler: Heun, Schedule type: Karras, CFG scale: 4, Seed: 4, Variation seed: 9" in text
    for name in options:
        if name not in ("steps", "variation_seed", "variation_strength"):
            other = pipe.generate("a fox", seed=4, **{**options, name: None})
            assert (pixels(other.images[0]) != pixels(result.images[0])).any(), name


def test_variation_strength_goes_from_the_seed_to_the_variation_seed(pipe: Pipeline) -> None:
    def image(seed: int, **options: Any) -> np.ndarray:
        return pixels(pipe.generate("a fox", seed=seed, sampler="euler_a", **options).images[0])

    mine, other = image(4), image(9)
    assert (image(4, variation_seed=9, variation_strength=0) == mine).all()
    assert (image(4, variation_seed=9, variation_strength=1) == other).all()
    between = image(4, variation_seed=9, variation_strength=0.3)
    assert (between != mine).any()
    assert (between != other).any()
    two = pipe.generate(
        "a fox", seed=[5, 4], sampler="euler_a", variation_seed=9, variation_strength=0.3
    )
    assert (pixels(two.images[1]) == between).all()


def test_a_default_spacing_goes_with_its_sampler(damaged: Path) -> None:
    raw = json.loads((damaged / MANIFEST).read_text())
    raw["defaults"]["spacing"] = "exponential"
    (damaged / MANIFEST).write_text(json.dumps(raw))
    with edgediff.load(damaged, threads=1) as pipe:
        assert pipe.generate("a", seed=0, steps=1).settings.spacing == "exponential"
        assert pipe.generate("a", seed=0, steps=1, spacing="beta").settings.spacing == "beta"
        assert pipe.generate("a", seed=0, steps=1, sampler="ddim").settings.spacing is None


def test_an_option_that_there_is_not_says_which_was_meant(pipe: Pipeline) -> None:
    with pytest.raises(TypeError, match="unexpected option 'step': did you mean 'steps'"):
        pipe.generate("a fox", step=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"unexpected option 'zoom': see edgediff\.Options"):
        pipe.stream("a fox", zoom=2)  # type: ignore[call-arg]
