"""Models that several files export."""

import os
import tempfile

import pytest
from toys import save, text_model, trained_model

# where transformers copies the code of models; read when it is first imported
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="deltalm-test-")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(directory without vocabulary, sources)."""
    model, sources = trained_model()
    return save(model, tmp_path_factory.mktemp("trained") / "model"), sources


@pytest.fixture(scope="session")
def with_text(tmp_path_factory):
    """A model directory with a vocabulary of text."""
    return text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="session")
def large_with_text(tmp_path_factory):
    """One without embedding norm, as DeltaLM large is."""
    return text_model(tmp_path_factory.mktemp("large") / "model", seed=1, eos_logit=2, embedding_norm=False)
