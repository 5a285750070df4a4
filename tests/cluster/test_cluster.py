"""Every case of the campaign, on hosts that root can make."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import campaign
from tests.cluster.hosts import what_is_missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out() -> Iterator[Path]:
    if why := what_is_missing():
        pytest.skip(why)
    directory = ROOT / "build" / f"cluster-{os.getpid()}"  # all hosts see it; pytest's own folders lie under /tmp
    yield directory
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*campaign.CASES, campaign.MANY, campaign.SLOW])
def test_it_ends_as_if_nothing_had_happened(name: str, out: Path) -> None:
    assert campaign.main(["--out", str(out), "--only", name]) == 0
