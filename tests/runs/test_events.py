"""The events of a run: what is recorded is read."""

from deltalm_ds.runs.events import read_events, record_event


def test_whatever_a_value_holds_is_read_again(tmp_path):
    paths = ["a\u2028b", "a\x85b", "a\nb", "日"]
    for path in paths:
        record_event(tmp_path, "changed", path=path)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"kind": "cut')
    assert [event["path"] for event in read_events(tmp_path)] == paths


def test_a_line_that_a_full_disk_cut_does_not_take_the_next_one_with_it(tmp_path):
    record_event(tmp_path, "start")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"kind": "save fai')
    record_event(tmp_path, "end")
    assert [event["kind"] for event in read_events(tmp_path)] == ["start", "end"]
