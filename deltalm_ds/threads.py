"""Threads that wait for work sleep, so that another busy program finds the cores free."""

import os
from collections.abc import MutableMapping

WAITING = {"OMP_WAIT_POLICY": "passive"}  # read once, when the OpenMP library is loaded with torch
SET_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """In what starts with this environment: this process, if torch is not imported yet; a user's own setting stays.

    OpenMP's threads otherwise spin between two products. Where several programs share the cores, those that spin hold
    up those that compute: beside one busy process translating falls to a third.
    """
    if not any(name in environment for name in SET_BY_USERS):
        environment.update(WAITING)


def waiting_threads() -> str:
    """How threads wait, by the variables that say so; the library's default is to spin."""
    found = [f"{name}={os.environ[name]}" for name in SET_BY_USERS if name in os.environ]
    return ", ".join(found) or "spin"
