"""One server for all tests that only ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.served import Process, make_model


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has `model` and `vocabulary`."""
    directory = tmp_path_factory.mktemp("served")
    make_model(directory)
    return directory


@pytest.fixture(scope="session")
def server(directory: Path) -> Iterator[Process]:
    """`deltalm serve` with one model, `model`."""
    with Process(directory / "model", "--beam", 2, "--max-characters", 4_000, "--threads", 1) as process:
        yield process
