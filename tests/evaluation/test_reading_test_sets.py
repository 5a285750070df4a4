"""Test sets from files: which files are theirs, whatever else lies beside them."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets


def write(directory, **files):
    """`test__en_de__en` is the file `test.en-de.en`."""
    for name, text in files.items():
        (directory / name.replace("__", ".").replace("_", "-")).write_text(text)


def test_one_pair_of_files_serves_both_directions(tmp_path):
    write(tmp_path, test__en_de__en="a\nb\n", test__en_de__de="c\nd\n", dev__en_fr__en="x\n", dev__en_fr__fr="y\n")
    assert read_test_sets(tmp_path, "test") == [
        TestSet("de-en", ["c", "d"], ["a", "b"]),
        TestSet("en-de", ["a", "b"], ["c", "d"]),
    ]
    assert read_test_sets(tmp_path, "dev", ["fr-en"]) == [TestSet("fr-en", ["y"], ["x"])]


@pytest.mark.parametrize(
    ("first", "second"), [("en", "pt-BR"), ("zh-Hans", "en"), ("zh_CN", "zh_TW"), ("eng_Latn", "zho_Hans")]
)
def test_codes_with_scripts_and_regions(tmp_path, first, second):
    for language in (first, second):
        (tmp_path / f"test.{first}-{second}.{language}").write_text(f"{language}\n")
    forth, back = f"{first}-{second}", f"{second}-{first}"
    found = read_test_sets(tmp_path, "test", [forth, back])
    assert found == [TestSet(forth, [first], [second]), TestSet(back, [second], [first])]
    assert [test.target_lang for test in found] == [second, first]


def test_strays_are_left_alone(tmp_path):
    write(tmp_path, test__en_de__en="a\n", test__en_de__de="b\n")
    for stray in ("test.en-de.en.bak", "test.en-de.en~", "test.en-de.fr", "test.notes-old.txt", "test.en-de", "test.x"):
        (tmp_path / stray).write_text("one\ntwo\n")
    assert [test.direction for test in read_test_sets(tmp_path, "test")] == ["de-en", "en-de"]


def test_what_is_missing_or_uneven_is_named(tmp_path):
    with pytest.raises(InputError, match=r"test.en-de.en"):
        read_test_sets(tmp_path, "test")
    write(tmp_path, test__en_de__en="a\nb\n", test__en_de__de="c\n")
    with pytest.raises(InputError, match="'en-fr'; it has de-en, en-de"):
        read_test_sets(tmp_path, "test", ["en-fr"])
    with pytest.raises(InputError, match=r"test\.en-de\.en has 2 lines but .*test\.en-de\.de has 1"):
        read_test_sets(tmp_path, "test", ["en-de"])
    with pytest.raises(InputError, match="'de' names one language, not two"):
        read_test_sets(tmp_path, "test", ["de"])


@pytest.mark.parametrize("split", ["/tmp/test", "**x", "t*t", "[t]est"])
def test_a_split_is_a_name_and_no_pattern(split, tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"test.en-de.{language}").write_text("x\n")
    with pytest.raises(InputError, match="has no test sets"):
        read_test_sets(tmp_path, split)


def test_objects_with_several_references(tmp_path):
    lines = ['{"source": "a", "references": ["b", "c"]}', '{"source": "d", "references": ["e"]}']
    (tmp_path / "dev.en-ru.jsonl").write_text("\n".join(lines))
    write(tmp_path, dev__en_de__en="x\n", dev__en_de__de="y\n")
    found = {test.direction: test for test in read_test_sets(tmp_path, "dev")}
    assert list(found) == ["de-en", "en-de", "en-ru"]  # objects have one direction
    assert found["en-ru"].references == ["b", "e"]
    assert list(map(list, found["en-ru"].further_references)) == [["c"], []]
    assert found["en-ru"].first(1).further_references[0] == ("c",)
    assert found["en-de"].further_references == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"source": "a"}', "line 2: expected an object with the text `source` and a list"),
        ('{"source": "a", "references": []}', "line 2: a reference is empty, or there is none"),
        ('{"source": "a", "references": ["b", " "]}', "line 2: a reference is empty"),
        ("{", "line 2: not valid JSON"),
    ],
)
def test_lines_that_are_no_test(line, message, tmp_path):
    (tmp_path / "test.en-en.jsonl").write_text('{"source": "a", "references": ["b"]}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_test_sets(tmp_path, "test")
