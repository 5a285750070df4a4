"""Settings and paths of all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from deltalm_ds.threads import let_waiting_threads_sleep

# One library for every product, in child processes too: results must not hang on what was fastest. All tests hold with
# DELTALM_LINEAR=onednn as well.
os.environ.setdefault("DELTALM_LINEAR", "torch")

# Read when torch is imported: two threads of a test that share cores with other tests would wait for each other awake.
let_waiting_threads_sleep()

# the same examples every time, and no time limits: a slow machine is no failure
settings.register_profile("deltalm", deadline=None, derandomize=True)
settings.load_profile("deltalm")

LONG = ("training", "cluster", "faults")  # folders


def pytest_configure(config: pytest.Config) -> None:
    """The suite is for the processor, also where there are GPUs; `check_fused.py` is what runs on them."""
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist: it has the environment of who started it
    if not is_worker and not any("check_fused" in argument for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that train or wait for minutes come first: at the end one worker would be busy with such a file alone."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Reduced outputs of other programs, to match."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The whole outputs of Microsoft's code; they are beside a developer's checkout and in no clone."""
    directory = Path(__file__).parents[2] / "shared" / "reference"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not on this machine: only the reduced reference in tests/fixtures is compared")
    return directory
