"""The campaign's first kills, after which everything is as if nothing had happened."""

import pytest

from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.history import read_starts
from tests.faults import campaign

PARTS = ["imports", "joining ranks", "inputs", "model", "DeepSpeed"]


@pytest.mark.slow
def test_killed_twice_it_repeats_every_digit(tmp_path, capsys):
    out = tmp_path / "faults"
    assert campaign.main(["--kills", "2", "--steps", "100", "--out", str(out)]) == 0
    assert "2 kills in 1 runs" in capsys.readouterr().out
    ends = [start.end["code"] if start.end else None for start in read_starts(out / "run_000")]
    assert (ends[0], ends[-1]) == (247, 0)
    assert {None} < set(ends) <= {247, None, 75, 0}  # starters that were killed have recorded no end
    fresh, *_, resumed = (event for event in read_events(out / "run_000") if event["kind"] == "started")
    assert list(fresh["seconds"]) == [*PARTS, "first step"]
    assert list(resumed["seconds"]) == [*PARTS, "restoring", "first step"]


def test_every_kind_of_kill_comes_at_every_moment():
    kills = [campaign.Kill.of(number) for number in range(21)]
    assert {(kill.target, kill.moment) for kill in kills} == {
        (target, moment) for target in campaign.TARGETS for moment in campaign.MOMENTS
    }
    assert campaign.Kill.of(7) == kills[7]
