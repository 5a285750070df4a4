"""Text, its vocabulary and what is to be built of it, for the tests of builds."""

import gzip

import pytest
import sentencepiece

from deltalm_ds.data_tools.build import CorpusSpec
from deltalm_ds.data_tools.sources import TextSource
from deltalm_ds.vocabulary import Vocabulary
from tests.data_tools.building import sentences


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("build")
    (directory / "train.en").write_text("\n".join(sentences(300, 1)) + "\n")
    (directory / "train.de").write_text("\n".join(sentences(300, 2)) + "\n")
    (directory / "mono.de.gz").write_bytes(gzip.compress("\n".join(["", *sentences(200, 3)]).encode()))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(300, 1)),
        model_prefix=str(directory / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    Vocabulary.from_spm(directory / "spm.model", num_sentinels=4, languages=("en", "de")).save(directory / "vocab")
    return directory


@pytest.fixture(scope="module")
def vocabulary(workspace):
    return Vocabulary.load(workspace / "vocab")


@pytest.fixture
def specs(workspace):
    return [
        CorpusSpec.from_name("en-de", [TextSource((workspace / "train.en", workspace / "train.de"))]),
        CorpusSpec.from_name("de", [TextSource((workspace / "mono.de.gz",))]),
    ]
