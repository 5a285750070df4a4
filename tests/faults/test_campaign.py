"""The campaign's first kills, after which everything is as if nothing had happened."""

from tests.faults import campaign


def test_killed_four_times_it_repeats_every_digit(tmp_path, capsys):
    assert campaign.main(["--kills", "4", "--steps", "150", "--out", str(tmp_path / "faults")]) == 0
    assert "4 kills in 1 runs" in capsys.readouterr().out


def test_every_kind_of_kill_comes_at_every_moment():
    kills = [campaign.Kill.of(number) for number in range(36)]
    assert {(kill.target, kill.moment) for kill in kills} == {
        (target, moment) for target in campaign.TARGETS for moment in campaign.MOMENTS
    }
    assert campaign.Kill.of(7) == kills[7]
