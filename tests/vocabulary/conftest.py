"""A SentencePiece model for the tests of this folder."""

from pathlib import Path

import pytest
from spm_models import train_spm


@pytest.fixture(scope="session")
def spm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_spm(tmp_path_factory.mktemp("spm") / "spm.model")
