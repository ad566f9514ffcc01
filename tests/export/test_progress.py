"""Progress of an export: phases, the time left, and the line that shows them."""

import pytest
from edgediff_export.progress import Progress, Reporter
from edgediff_export.progress_line import ProgressLine


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_and_steps() -> None:
    said: list[Progress] = []
    report = Reporter(said.append)
    report("opening")
    tracing = report.phase("tracing", 8)
    tracing.begin("unet: tracing", 6)
    tracing.end()
    tracing.begin("vae: tracing", 2)
    tracing.advance(1.5)
    tracing.advance(1.5)  # no more than its share
    tracing.end()
    assert [(p.phase, p.text, p.done, p.total) for p in said] == [
        ("opening", "opening", 0, 0),
        ("tracing", "unet: tracing", 0, 8),
        ("tracing", "unet: tracing", 6, 8),
        ("tracing", "vae: tracing", 6, 8),
        ("tracing", "vae: tracing", 7.5, 8),
        ("tracing", "vae: tracing", 8, 8),
        ("tracing", "vae: tracing", 8, 8),
    ]


def test_without_a_terminal_each_step_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLine(terminal=False, clock=clock) as show:
        images = Reporter(show).phase("images", 4)
        images.begin()
        for _ in range(4):
            clock.now += 2.0
            images.advance()
        Reporter(show)("done")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "   0.0 s  images\n   8.0 s  done\n"


def test_on_a_terminal_the_line_counts_down(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLine(terminal=True, clock=clock) as show:
        clock.now += 3.0
        images = Reporter(show).phase("images", 40)
        images.begin()
        assert show.seconds_left() is None
        for _ in range(10):
            clock.now += 2.0
            images.advance()
        assert show.seconds_left() == pytest.approx(60.0)
        clock.now += 0.01
        images.advance()  # too soon for another update
        Reporter(show)("done")
    shown = capsys.readouterr().err
    first, *updates, last, done, end = shown.split("\r")[1:]
    assert first == "   3.0 s  images"
    assert updates[0] == "   5.0 s  images"  # 1 of 40 is too little to tell
    assert updates[1] == "   7.0 s  images  1 min 16 s left"
    assert updates[-1] == "  23.0 s  images  1 min 0 s left"
    assert len(updates) == 10
    # The step's last line stays without the time left, whose place is blank.
    assert last == "  23.0 s  images".ljust(len(updates[-1])) + "\n"
    assert done == "  23.0 s  done"
    assert end == "  23.0 s  done\n"


def test_a_phase_that_comes_again_is_timed_from_its_start() -> None:
    clock = Clock()
    show = ProgressLine(terminal=False, clock=clock)
    for seconds in (1.0, 5.0):
        images = Reporter(show).phase("images", 2)
        images.begin()
        clock.now += seconds
        images.advance()
        assert show.seconds_left() == pytest.approx(seconds)


def test_an_error_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with ProgressLine(terminal=True, clock=Clock()) as show:
            Reporter(show)("tracing")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert capsys.readouterr().err == "\r   0.0 s  tracing" * 2 + "\n"
