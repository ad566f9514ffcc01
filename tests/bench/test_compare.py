"""What may be compared, and what is refused."""

from collections.abc import Callable

import pytest

from edgediff.bench.compare import against, compare, differences, first_comparable
from edgediff.bench.machine import Conditions
from edgediff.bench.results import Result, Run
from edgediff.cli.bench import _table
from edgediff.errors import InputError

Measured = Callable[..., Run]
Made = Callable[..., Result]
SECONDS = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01]


def test_twice_as_fast_is_a_ratio_of_a_half(measured: Measured, result: Made) -> None:
    a, b = measured(SECONDS), measured([s / 2 for s in SECONDS])
    (pair,) = compare(result(a), result(b))
    assert pair.ratios["image"].median == pytest.approx(0.5)
    assert set(pair.ratios) == {"image", "text_encoder", "step", "decoder"}
    assert not pair.within_noise
    assert pair.cold is not None
    assert pair.cold.median == pytest.approx(0.5)


def test_a_difference_within_the_noise_is_called_that(measured: Measured, result: Made) -> None:
    noisy = [1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0, 0.95]
    (pair,) = compare(result(measured(noisy)), result(measured([1.02 * s for s in noisy])))
    assert pair.within_noise


def test_interleaved_runs_of_one_file_are_compared_round_by_round(measured: Measured) -> None:
    noisy = [1.0, 3.0, 0.8, 1.1, 0.9, 2.2, 1.0, 0.95]
    a, b = measured(noisy), measured([1.02 * s for s in noisy])
    pair = against(a, b, interleaved=True)
    assert not pair.within_noise
    assert pair.ratios["image"].median == pytest.approx(1.02)


def test_runs_of_one_file_are_held_against_the_first_that_drew_the_same(measured: Measured) -> None:
    first, larger = measured(SECONDS), measured(SECONDS, width=256)
    unmeasured = measured([])
    threads, larger_too = measured(SECONDS, threads=1), measured(SECONDS, width=256, threads=1)
    runs = [unmeasured, first, larger, threads, larger_too]
    assert [first_comparable(r, runs) for r in runs[1:]] == [None, None, first, larger]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"name": "other", "id": "b" * 64}}, "not comparable: model emoji against other"),
        ({"width": 256}, "size 128x128 against 256x128"),
        ({"steps": 8}, "steps 4 against 8"),
        ({"sampler": "euler"}, "sampler ddim against euler"),
        ({"guidance_scale": 2.0}, "guidance scale 1.0 against 2.0"),
        ({"batch": 2}, "batch 1 against 2"),
        (
            {"model": {"id": "b" * 64}},
            "bundle aaaaaaaaaaaa… against bbbbbbbbbbbb…: if they are two exports of one model,"
            " add --exports",
        ),
    ],
)
def test_what_is_not_alike_is_refused(
    change: dict[str, object], said: str, measured: Measured, result: Made
) -> None:
    with pytest.raises(InputError, match=said):
        compare(result(measured(SECONDS)), result(measured(SECONDS, **change)))


def test_two_exports_of_one_model_where_asked_for(measured: Measured, result: Made) -> None:
    other = measured(SECONDS, model={"id": "b" * 64, "precision": "fp32"})
    assert len(compare(result(measured(SECONDS)), result(other), exports=True)) == 1


def test_another_provider_or_number_of_threads_is_what_one_compares(
    measured: Measured, result: Made
) -> None:
    other = measured(SECONDS, provider="openvino", threads=4)
    assert len(compare(result(measured(SECONDS)), result(other))) == 1


def test_several_runs_are_paired_by_provider_and_threads(measured: Measured, result: Made) -> None:
    one, two = measured(SECONDS, threads=1), measured(SECONDS, threads=2)
    pairs = compare(result(one, two), result(two, one))
    assert [(p.a.config.threads, p.b.config.threads) for p in pairs] == [(1, 1), (2, 2)]
    with pytest.raises(InputError, match="threads 1 against 4"):
        compare(result(one, two), result(measured(SECONDS, threads=4)))


def test_nothing_measured_is_refused(measured: Measured, result: Made) -> None:
    with pytest.raises(InputError, match="B holds no measured run"):
        compare(result(measured(SECONDS)), result(measured([])))


def test_machines_and_versions_that_differ_are_told(measured: Measured, result: Made) -> None:
    a = result(measured(SECONDS))
    b = result(measured(SECONDS), versions={"edgediff": "0.2.0", "onnxruntime": "1.32.0"})
    assert differences(a, b) == ["edgediff: 0.1.0 / 0.2.0"]
    assert differences(a, a) == []


def test_a_machine_that_was_busy_or_hot_is_told(measured: Measured, result: Made) -> None:
    calm = result(measured(SECONDS))
    busy = Conditions(frequency_mhz=None, throttled=3, others=0.4)
    assert differences(calm, result(measured(SECONDS), conditions=busy)) == [
        "CPU time of other processes: 1% / 40%",
        "throttling events: 0 / 3",
    ]
    silent = Conditions(frequency_mhz=None, throttled=None, others=None)
    assert differences(calm, result(measured(SECONDS), conditions=silent)) == []


def test_only_runs_of_the_same_image_are_held_against_each_other(
    measured: Measured, result: Made
) -> None:
    seconds = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]
    runs = [
        measured(seconds, label="here"),
        measured(seconds, label="larger", width=256),
        measured([s / 2 for s in seconds], label="threads", threads=1),
    ]
    header, here, larger, threads = _table(result(*runs)).splitlines()[1:]
    assert header.endswith("ratio to the first")
    column = header.index("ratio to the first")
    assert [line[column:].strip() for line in (here, larger)] == ["", ""]
    assert threads[column:].startswith("0.5 (")
