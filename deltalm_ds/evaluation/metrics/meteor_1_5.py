"""METEOR 1.5 [Denkowski+14]: its authors' program in Java, with synonyms and paraphrases; WebNLG is scored by it."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import (
    LANGUAGE,
    REFERENCES,
    Metric,
    References,
    Score,
    Scorer,
    Statistics,
    score_from,
)
from deltalm_ds.languages import read_code

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

JAR = "METEOR_JAR"  # names meteor-1.5.jar, which has its data beside it
LANGUAGES = {code: code for code in ("en", "de", "es", "fr", "da", "fi", "hu", "it", "nl", "pt", "ro", "ru", "tr")}
LANGUAGES |= {"cs": "cz", "nb": "no", "sv": "se"}


def scorer(references: References) -> Scorer:
    """The program's score of all outputs in percent, from its own counts by sentence; `-norm` splits into words.

    Raises:
        InputError: Java, the jar or its data of the language are missing, or it has no such language.
    """
    assert references.language is not None
    language = read_code(references.language).language
    if language not in LANGUAGES:
        raise InputError(f"METEOR 1.5 does not support {references.language}: it has {', '.join(LANGUAGES)}.")
    program = _program(LANGUAGES[language], os.environ.get(JAR))
    of_each = [tuple(map(_plain, texts)) for texts in references.of_each]

    def score(outputs: Sequence[str]) -> Score:
        import numpy as np

        rows = [program.counts(texts, _plain(output)) for texts, output in zip(of_each, outputs, strict=True)]
        settings = f"nrefs:{references.number}|lang:{LANGUAGES[language]}|norm:yes|version:1.5"
        return score_from(Statistics(np.array(rows), program.score), settings)

    return Scorer(score)


def _plain(text: str) -> str:
    """Without what the program divides its lines by."""
    return " ".join(re.sub(r"\|{3,}", " ", text).split())


@cache
def _program(language: str, jar: str | None) -> "_Program":
    """One for all scorers: it needs seconds to start."""
    return _Program(language, jar)


class _Program:
    """METEOR as a process that answers lines; it ends with this one, when its input does.

    Raises:
        InputError: it does not start.
    """

    def __init__(self, language: str, jar: str | None) -> None:
        java = shutil.which("java")
        if java is None or not jar or not Path(jar).is_file():
            raise InputError(
                f"METEOR 1.5 needs Java ({java or 'not found'}) and its jar, named as {JAR} ({jar or 'not set'}): "
                "meteor-1.5.jar with its data is in the package pycocoevalcap."
            )
        self._messages = TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", jar, *f"- - -stdio -norm -l {language}".split()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            encoding="utf-8",
        )
        self.counts(("a",), "a")  # says whether it works

    def counts(self, references: Sequence[str], output: str) -> list[float]:
        """What it counts in a sentence."""
        return [float(number) for number in self._answer("SCORE", *references, output).split()]

    def score(self, sums: "NDArray[np.float64]") -> float:
        """In percent, from sums of counts."""
        self._answer("EVAL", " ".join(map(str, sums.tolist())))  # of the sentence; then of all
        assert self._process.stdout is not None
        return 100 * float(self._process.stdout.readline())

    def _answer(self, *parts: str) -> str:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        line = ""
        try:
            process.stdin.write(" ||| ".join(parts) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            process.wait()
            self._messages.seek(0)
            said = self._messages.read().decode("utf-8", "replace").splitlines()
            reason = next((text for text in said if text.strip()), "it says nothing")
            raise InputError(f"METEOR 1.5 ended: {reason.partition('RuntimeException: ')[2] or reason}")
        return line


METRIC = Metric("meteor_1.5", "METEOR 1.5", higher_is_better=True, scorer=scorer, needs=(REFERENCES, LANGUAGE))
