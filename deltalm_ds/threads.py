"""A machine is shared: how many threads to take, and that threads that wait for work sleep."""

import os
from collections.abc import MutableMapping
from pathlib import Path

# Read once, when the OpenMP library is loaded with torch. GNU's library looks 5,000 times for more work, some tens of
# microseconds, before a thread sleeps: a product is often followed by another at once, and to wake a thread for each
# costs a search a fifth of its speed. Other libraries know the first of these alone.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "5000"}
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this control group: microseconds, of a period
LOOK_S = 0.1  # how long the machine is looked at
SET_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """In what starts with this environment: this process, if torch is not imported yet; a user's own setting stays.

    OpenMP's threads otherwise spin for milliseconds between two products. Where several programs share the cores, those
    that spin hold up those that compute: beside one busy process translating falls to a third.
    """
    if not any(name in environment for name in SET_BY_USERS):
        environment.update(WAITING)


def waiting_threads() -> str:
    """How threads wait, by the variables that say so; the library's default is to spin."""
    found = [f"{name}={os.environ[name]}" for name in SET_BY_USERS if name in os.environ]
    return ", ".join(found) or "spin"


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group's quota pays for."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # there is none, or it is `max`
        return cores


def threads_to_take() -> int:
    """Threads for work that has all its products in common: all usable cores, or as many as others leave free.

    Threads of one product wait for the last of them. While half of the cores are free the system gives each its share
    in time; where fewer are, more threads than that only wait for each other. 0, the libraries' own number, where
    OMP_NUM_THREADS says it.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return 0
    import psutil

    usable, all_cores = usable_cores(), psutil.cpu_count() or 1
    free = all_cores * (1 - psutil.cpu_percent(interval=LOOK_S) / 100)
    return usable if free >= usable / 2 - 0.2 else max(1, min(usable, round(free)))
