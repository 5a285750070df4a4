"""The log of a run: what is written is read, and a resume leaves no trace in it."""

import errno
import json
from datetime import datetime, timezone

import pytest

from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import MetricsLog, read_metrics


def without_time(records):
    return [{key: value for key, value in record.items() if key != "time"} for record in records]


def test_a_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, "train", {"loss": 1 / step, "of": {"en-de": 0.1 * step}})
    log.write(3, "validation", {"loss": 0.5})
    log.close()
    before = read_metrics(tmp_path)
    time = before[1].pop("time")
    assert abs((datetime.now(timezone.utc) - datetime.fromisoformat(time)).total_seconds()) < 60
    assert before[1] == {"step": 2, "kind": "train", "loss": 0.5, "of": {"en-de": 0.2}}

    log = MetricsLog(tmp_path, 3)
    kept = [record for record in before if record["step"] <= 3]
    assert without_time(read_metrics(tmp_path)) == without_time(kept)
    (lost,) = read_events(tmp_path)
    assert (lost["kind"], lost["step"], lost["last_step"]) == ("steps lost", 3, 5)
    for step in (4, 5):
        log.write(step, "train", {"loss": 1 / step, "of": {"en-de": 0.1 * step}})
    log.close()
    assert sorted(map(str, without_time(read_metrics(tmp_path)))) == sorted(map(str, without_time(before)))


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": 2.0})
    log.write(2, "train", {"loss": 1.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    MetricsLog(tmp_path, 5).close()
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize(
    "line", ['{"step": "x", "kind": "train"}', '{"step": null}', '{"step": 3}', "[1]", "null", '{"st']
)
def test_a_line_that_is_no_record_is_left_out(line, tmp_path, capsys):
    """Edited or half overwritten: training does not depend on its log."""
    good = '{"step": 1, "kind": "train"}'
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    assert read_metrics(tmp_path) == [json.loads(good)] * 2
    assert "1 line(s) cannot be read and are left out: 2" in capsys.readouterr().err
    MetricsLog(tmp_path, 1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{good}\n{good}\n"


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path, capsys):
    log, written = MetricsLog(tmp_path, 0), []

    class FullDisk:
        """Takes three bytes, then nothing."""

        def write(self, content):
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(log_file.write(content[:3]))
            return 3

    log_file, log._file._file = log._file._file, FullDisk()
    for step in range(1, 100):
        log.write(step, "train", {"loss": 1 / step, "of": {"en-de": "x" * 200}})
    assert "the records of step 99 are not written yet: No space left on device." in capsys.readouterr().err
    log._file._file = log_file
    log.write(100, "train", {"loss": 0.0})
    log.close()
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 101))
    assert capsys.readouterr().err == ""


def test_a_run_without_a_log(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_every_number_under_its_path(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, 0)
    log.write(1, "train", {"loss": 2.0, "of": {"en-de": 0.5}, "norm": float("inf"), "name": "x"})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "train/of/en-de"}
    assert events.Scalars("train/of/en-de")[0].value == 0.5
