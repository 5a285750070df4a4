"""Every case of the campaign of SLURM and MPI, where root can make hosts and SLURM is installed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts, slurm_campaign, slurm_cluster
from tests.cluster.slurm_cases import CASES
from tests.cluster.slurm_work import WORK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out() -> Iterator[Path]:
    if why := hosts.what_is_missing() or slurm_cluster.what_is_missing():
        pytest.skip(why)
    directory = ROOT / "build" / f"slurm-{os.getpid()}"  # all hosts see it; pytest's own folders lie under /tmp
    yield directory
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *WORK])
def test_it_comes_again_or_ends_as_documented(name: str, out: Path) -> None:
    assert slurm_campaign.main(["--out", str(out), "--only", name]) == 0
