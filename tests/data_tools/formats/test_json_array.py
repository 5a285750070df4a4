"""A JSON array is read as a stream, as the standard library reads it whole."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltalm_ds import lines
from deltalm_ds.data_tools.formats import json_array
from deltalm_ds.data_tools.sources import TextSource, divide, read_records
from deltalm_ds.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def records_of(path):
    return list(read_records(TextSource((path,)), 1, Counter()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), max_size=4), st.sampled_from([None, 0, 3]))
def test_it_is_what_the_standard_library_reads(tmp_path, values, indent):
    path = tmp_path / "f.json"
    for ascii_only, ends in ((True, ""), (False, " \r\n\t")):
        text = f"{ends}{json.dumps(values, indent=indent, ensure_ascii=ascii_only)}{ends}"
        path.write_bytes(text.encode(errors="surrogatepass" if ascii_only else "ignore"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "BLOCK_BYTES", 3)
            found = [value for _, value in json_array.read_values(path)]
        assert found == json.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected an array"),
        ('{"data": []}', "line 1: expected an array, .*--jsonl"),
        ('{"text": "a"}\n{"text": "b"}\n', "line 1: expected an array, .*--jsonl"),
        ('[{"text": "a"},\n{"text": "b"},]', "line 2: record 3 of the array is no object"),
        ('[{"text": "a"},\n\n{"text" "b"}]', "line 3, record 2: not valid JSON"),
        ('[{"text": "a"}\n{"text": "b"}]', "line 2: no comma or `]` after record 1"),
        ('[{"text": "a"},\n{"text": "b', "line 2, record 2: not valid JSON .*cut short"),
        ('[{"text": "a"}', "line 1: no comma or `]` after record 1"),
        ('[{"text": "a"}]\n[{"text": "a"}]', "line 2: there is more after the array's end"),
        ("[1, 2]", "line 1: record 1 of the array is no object"),
        ("[" + '{"a":' * 100_000, "line 1, record 1: not valid JSON"),
    ],
)
def test_malformed_files_are_named(tmp_path, text, message):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"f\.json, {message}"):
        records_of(path)


def test_a_record_over_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 10)
    path = tmp_path / "f.json"
    path.write_text(json.dumps([{"text": "short"}, {"text": "x" * 1000}]))
    with pytest.raises(InputError, match=r"record 2: not valid JSON .*or very long"):
        records_of(path)


def test_a_file_on_one_line_is_not_divided_and_keeps_little_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_TEXT_BYTES", 1000)  # of a line, which the whole file is
    path = tmp_path / "f.json"
    path.write_text(json.dumps([{"text": f"number {number}"} for number in range(3000)]))
    source = TextSource((path,))
    assert divide(source, 10) == [source]
    assert records_of(path) == [(f"number {number}",) for number in range(3000)]
