"""METEOR 1.5: how we talk with the program, by a stand-in; its own scores of files, where it is here."""

import os
import re
import subprocess
import sys

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.metrics.meteor_1_5 import JAR

STAND_IN = f"""#!{sys.executable}
import sys
if sys.argv[-1] == "ru":
    sys.exit('Exception in thread "main" java.lang.RuntimeException: Error: file not found (ru.gz)')
for line in sys.stdin:
    kind, *texts = (part.strip() for part in line.split("|||"))
    if kind == "SCORE":  # words of the output, and those of them that the best reference has
        words = set(texts[-1].split())
        print(float(len(words)), float(max(len(words & set(text.split())) for text in texts[:-1])), flush=True)
    else:
        counts = [tuple(map(float, text.split())) for text in texts]
        for total, found in [*counts, tuple(map(sum, zip(*counts)))]:
            print(found / total if total else 0.0, flush=True)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "java").write_text(STAND_IN)
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "meteor.jar").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(JAR, str(tmp_path / "meteor.jar"))


def meteor(outputs, references):
    return METRICS["meteor_1.5"].scorer(references).score(outputs)


def test_the_score_is_the_programs_of_all_sentences(stand_in):
    references = References(["a b c", "x y"], "en", further=[("a b d e",), ()])
    found = meteor(["a  b d ||| e", "x z"], references)
    assert found.value == pytest.approx(100 * (4 + 1) / (4 + 2))
    assert found.signature == "nrefs:var|lang:en|norm:yes|version:1.5"
    assert found.statistics.rows.tolist() == [[4, 4], [2, 1]]
    assert meteor(["", "x"], references).value == 100


def test_what_is_missing_is_one_sentence(stand_in, monkeypatch):
    with pytest.raises(InputError, match=r"METEOR 1.5 does not support lv: it has en, de"):
        meteor(["a"], References(["a"], "lv"))
    with pytest.raises(InputError, match=r"METEOR 1.5 ended: Error: file not found \(ru.gz\)"):
        meteor(["a"], References(["a"], "ru"))
    monkeypatch.delenv(JAR)
    with pytest.raises(
        InputError, match=r"METEOR 1.5 needs Java \(.*java\) and its jar, named as METEOR_JAR \(not set\)"
    ):
        meteor(["a"], References(["a"], "en"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"needs Java \(not found\)"):
        meteor(["a"], References(["a"], "en"))


@pytest.mark.slow
@pytest.mark.skipif(JAR not in os.environ, reason=f"{JAR} does not name meteor-1.5.jar")
def test_its_own_score_of_files(tmp_path):
    references = ["The dog, he said, is asleep.", "It's raining today", "Nobody came to the old café."] * 3
    outputs = ["He said the dog sleeps.", "today it rains", "No one visited the café."] * 3
    for name, lines in (("out", outputs), ("ref", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = (
        f"java -Xmx2G -jar {os.environ[JAR]} {tmp_path / 'out'} {tmp_path / 'ref'} -l en -norm -f {tmp_path / 'm'}"
    )
    printed = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
    final = re.search(r"Final score:\s+([\d.]+)", printed)[1]
    assert meteor(outputs, References(references, "en")).value == pytest.approx(100 * float(final), abs=1e-9)
