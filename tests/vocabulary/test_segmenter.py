"""SentencePiece's inner function against its public one, so that a change of it is noticed."""

import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from spm_models import SENTENCES

from deltalm_ds.vocabulary import segmenter as segmenter_module
from deltalm_ds.vocabulary.segmenter import SENTENCEPIECE_VERSION, Segmenter

TEXTS = [*SENTENCES, "", "☃", "ＴＨＥ  river\u200b"]


@pytest.fixture(scope="module")
def segmenter(spm_path: Path) -> Segmenter:
    return Segmenter(spm_path.read_bytes())


def ids(segments) -> list[list[int]]:
    return [np.frombuffer(segment, np.int32).tolist() for segment in segments]


def test_the_inner_function_is_that_of_the_pinned_version() -> None:
    """Whoever pins another version looks at `Segmenter.segment`, and states that version there."""
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    pinned = re.search(r"^sentencepiece==(.*)$", constraints, re.MULTILINE)
    assert pinned is not None and pinned[1] == SENTENCEPIECE_VERSION


@pytest.mark.parametrize("version", [sentencepiece.__version__, "another"])
def test_the_inner_function_gives_what_the_public_one_gives(
    version: str, segmenter: Segmenter, spm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter_module, "SENTENCEPIECE_VERSION", version)
    expected = sentencepiece.SentencePieceProcessor(model_file=str(spm_path)).encode(TEXTS)
    assert ids(segmenter.segment(TEXTS)) == expected
    assert ids(segmenter.segment([text.encode() for text in TEXTS])) == expected
