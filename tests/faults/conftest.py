"""Disks that only root can mount."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import pytest

Disk = TypeVar("Disk")


@pytest.fixture
def mount() -> Iterator[Callable[[AbstractContextManager[Disk]], Disk]]:
    """Mounts a disk for the length of a test."""
    with contextlib.ExitStack() as stack:

        def enter(disk: AbstractContextManager[Disk]) -> Disk:
            try:
                return stack.enter_context(disk)
            except RuntimeError as error:
                # Only root can mount, and not in every container. What can be seen without such a disk is tested
                # everywhere: saves that fail and beats into a pipe (tests/training), tests/launch/test_disk.py.
                pytest.skip(str(error))

        yield enter
