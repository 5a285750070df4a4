"""The clock of a rank's sections: whatever is done, the seconds add up to the time that has passed."""

import time
from unittest import mock

import pytest
import torch

from deltalm_ds.training.sections import Sections


@pytest.fixture
def clock():
    """A clock that a test sets."""
    with mock.patch.object(time, "monotonic") as monotonic:
        monotonic.return_value = 0.0
        yield monotonic


def test_seconds_are_of_the_innermost_section(clock):
    sections = Sections()
    clock.return_value = 3.0
    with sections.section("validation"):
        clock.return_value = 4.0
        with sections.section("forward"):
            clock.return_value = 9.0
        assert sections.current == ("validation", 9.0)
        clock.return_value = 9.5
    assert sections.current == ("start", 9.5)
    assert sections.seconds == {"start": 3.0, "validation": 1.5, "forward": 5.0}


def test_work_is_that_of_whole_steps_without_waiting_for_others(clock):
    sections = Sections()
    clock.return_value = 5.0
    sections.begin_step(70)
    assert sections.work == (0, 0.0)
    for step in (71, 72):
        clock.return_value += 1.0  # for data
        sections.switch("other")
        clock.return_value += 100.0
        with sections.section("backward"):
            clock.return_value += 2.0
            with sections.section("communication"):
                clock.return_value += 100.0
            clock.return_value += 3.0
        with sections.section("optimizer"):
            clock.return_value += 4.0
        with sections.section("validation"):
            clock.return_value += 100.0
        sections.begin_step(step)
    assert sections.work == (2, 20.0)


def test_a_section_ends_with_an_error_too(clock):
    sections = Sections()
    with pytest.raises(ZeroDivisionError), sections.section("checkpoint"):
        clock.return_value = 2.0
        1 / 0  # noqa: B018
    assert sections.seconds["checkpoint"] == 2.0
    assert sections.current == ("start", 2.0)


def test_what_is_taken_is_since_the_last_time(clock):
    sections = Sections()
    clock.return_value = 1.0
    sections.switch("data")
    clock.return_value = 3.0
    assert sections.take() == {"start": 1.0, "data": 2.0}
    with sections.section("forward"):
        clock.return_value = 3.5
        assert sections.take() == {"forward": 0.5}
    assert sections.take() == {}


class Gpu:
    """A device that is behind the host: it does what was issued when `now` is moved on. Seconds."""

    def __init__(self):
        self.now, self.issued, self.events = 0.0, 0.0, 0

    def work(self, seconds):
        self.issued = max(self.issued, time.monotonic()) + seconds

    def event(self, enable_timing):
        assert enable_timing
        self.events += 1
        return Event(self)


class Event:
    """Stands in for torch.cuda.Event."""

    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.gpu.issued = self.at = max(self.gpu.issued, time.monotonic())

    def query(self):
        return self.gpu.now >= self.at

    def elapsed_time(self, end):
        assert end.query()
        return 1e3 * (end.at - self.at)


def test_on_a_gpu_seconds_are_the_devices_and_the_host_does_not_wait(clock):
    gpu = Gpu()
    with mock.patch.object(torch.cuda, "Event", gpu.event):
        sections = Sections()
        clock.return_value = 2.0
        sections.follow(torch.device("cuda"))
        for _ in range(3):
            with sections.section("forward"):
                gpu.work(5.0)
                clock.return_value += 0.1
            with sections.section("backward"):
                gpu.work(7.0)
        assert sections.take() == {"start": 2.0}  # the device has come to nothing yet
        gpu.now = 2.0 + 5.0 + 7.0 + 5.0
        assert sections.take() == {"forward": 10.0, "backward": 7.0}
        gpu.now = gpu.issued
        made = gpu.events
        assert sections.take() == {"forward": 5.0, "backward": 14.0}
        with sections.section("data"):  # nothing to do for the device, which waits for the host
            clock.return_value = 50.0
        gpu.now = gpu.issued
        assert sections.take() == {"data": 50.0 - 38.0}
        assert gpu.events == made  # they are used again


def test_marks_that_nobody_takes_do_not_pile_up(clock, monkeypatch):
    monkeypatch.setattr("deltalm_ds.training.sections.MAX_MARKS", 10)
    gpu = Gpu()
    with mock.patch.object(torch.cuda, "Event", gpu.event):
        sections = Sections()
        sections.follow(torch.device("cuda"))
        for _ in range(100):
            with sections.section("forward"):
                gpu.work(1.0)
            gpu.now = gpu.issued
        assert gpu.events < 15
        assert sections.take() == {"forward": 100.0}
