"""The table of targets: each of them can be exported, and runs somewhere."""

from typing import get_args

from edgediff_export.targets.table import CONVERTERS, PROVIDERS, Target

from edgediff.backend.providers import PROVIDERS as KNOWN


def test_every_target_and_precision_has_a_converter_and_providers() -> None:
    assert CONVERTERS.keys() == PROVIDERS.keys()
    assert {target for target, _ in CONVERTERS} == set(get_args(Target))
    for target, precision in CONVERTERS:
        assert set(PROVIDERS[target, precision]) <= KNOWN.keys()
        assert PROVIDERS[target, precision]


def test_only_float32_stays_as_it_was_traced() -> None:
    for (_, precision), converter in CONVERTERS.items():
        assert (converter is None) == (precision == "fp32")
