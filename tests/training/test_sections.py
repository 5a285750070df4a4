"""The clock of a rank's sections: whatever is done, the seconds add up to the time that has passed."""

import time
from unittest import mock

import pytest

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


def test_a_section_ends_with_an_error_too(clock):
    sections = Sections()
    with pytest.raises(ZeroDivisionError), sections.section("checkpoint"):
        clock.return_value = 2.0
        1 / 0  # noqa: B018
    assert sections.seconds["checkpoint"] == 2.0
    assert sections.current == ("start", 2.0)
