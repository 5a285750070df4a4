"""Checks of the way between hosts before a start, from what they tell, and of the collective test's results."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from deltalm_ds.launch.meeting import common_address
from deltalm_ds.launch.preflight.facts import Limits, Network
from deltalm_ds.launch.preflight.findings import FAIL, WARN, Check
from deltalm_ds.launch.preflight.survey import Survey

SLOW, FAR_TOO_SLOW = 0.67, 0.25  # a host's bandwidth as a share of the median
LATE, FAR_TOO_LATE = 3.0, 30.0  # its latency in medians
LEAST_LATENCY_S = 100e-6  # differences below it are of no weight
LEAST_LOCKED_BYTES = 1 << 30

_PORT = (
    "port {port} cannot be had: {error}",
    "end what listens there (`ss -ltnp sport = :{port}`), or give another one as MASTER_PORT",
)
_NO_WAY = (
    "it reaches none of {first}'s addresses",
    "see that both are in one network and that no firewall is between them: ranks connect to ports of all numbers",
)
_NO_COMMON = (
    "there is no address of {first} at which all hosts reach it",
    "put the hosts into one network, or name its host by the address that all of them reach",
)
_LINK_DOWN = "port {link} is {state}", "see `ibstat` and the cable; ranks would fall back to a slower network"
_SAME_RATE = "see `ibstat`: a bad cable or port makes all ranks wait"
_SAME_MTU = "set the same MTU on all hosts (`ip link set INTERFACE mtu …`): large packets are lost where they differ"
_SAME_SPEED = "see `ethtool`: a bad cable or port makes all ranks wait"
_LOCKED = (
    "a process may lock {limit} KiB of memory, and InfiniBand needs it without limit",
    "set memlock to unlimited in /etc/security/limits.conf, and LimitMEMLOCK=infinity in sshd's service",
)
_BANDWIDTH = (
    "{value:.3g} GB/s to other hosts, the median is {usual:.3g} GB/s",
    "see its cable, port and switch (`ethtool`, `ibstat`), and other programs there; else leave it out",
)
_LATENCY = (
    "{value:.0f} µs to other hosts, the median is {usual:.0f} µs",
    "see what else uses its network or processors; else leave it out",
)
_ONE_PAIR = (
    "{bandwidth:.3g} GB/s and {latency:.0f} µs between them; which of two hosts is the slow one cannot be told",
    "compare with what the network should give",
)
_WRONG_SUM = "a sum over all ranks was wrong", "see the hosts' memory and network cards: results cannot be trusted"


def meeting(survey: Survey) -> Check:
    """The first host can be reached at one address by all, at the port that ranks will meet at."""
    check = survey.check("first host", "reached by all")
    parts: dict[str, Network] = check.parts(survey.facts, "network")
    first = survey.hosts[0].name
    if first in parts and (error := parts[first].port_error) is not None:
        check.say(FAIL, first, _PORT, port=survey.port, error=error)
    if first not in parts:
        return check  # it says itself why
    for name, part in parts.items():
        if not part.reached:
            check.say(FAIL, name, _NO_WAY, first=first)
    address = _address(parts)
    if address is None and any(part.reached for part in parts.values()):
        check.say(FAIL, first, _NO_COMMON, first=first)
    elif address is not None:
        check.fine = f"reached by all at {address}"
    return check


def interfaces(survey: Survey) -> Check:
    """The interfaces towards the first host are alike, and so are the ports of InfiniBand."""
    told = {name: survey.facts[name].network for name in survey.answering}
    parts = {name: part for name, part in told.items() if isinstance(part, Network)}
    check = Check("network", tuple(parts), "interfaces alike")
    own = {name: part.reached.get(_address(parts) or "", "") for name, part in parts.items()}
    used = {name: part.interfaces[own[name]] for name, part in parts.items() if own[name] in part.interfaces}
    check.alike(WARN, "speed of its interface", {name: one[1] for name, one in used.items()}, _SAME_SPEED, _megabits)
    check.alike(FAIL, "MTU", {name: one[2] for name, one in used.items()}, _SAME_MTU)
    for link in sorted({link for part in parts.values() for link in part.links}):
        there = {name: part.links[link] for name, part in parts.items() if link in part.links}
        active = {name: one.rate for name, one in there.items() if one.state == "ACTIVE"}
        for name in there.keys() - active.keys() if active else ():
            check.say(WARN, name, _LINK_DOWN, link=link, state=there[name].state)
        check.alike(WARN, f"rate of {link}", active, _SAME_RATE)
    for name, part in parts.items():
        limits = survey.facts[name].limits
        locked = limits.locked_bytes if isinstance(limits, Limits) else None
        if part.links and locked is not None and locked < LEAST_LOCKED_BYTES:
            check.say(WARN, name, _LOCKED, limit=locked >> 10)
    return check


def _address(parts: Mapping[str, Network]) -> str | None:
    """The address of the first host at which all that reach it do."""
    ways = [part.reached for part in parts.values() if part.reached]
    return common_address(dict.fromkeys(way for reached in ways for way in reached), ways)


def _megabits(speed: int) -> str:
    return f"{speed:,} Mbit/s" if speed > 0 else "unknown"


def collective(survey: Survey, result: dict[str, Any]) -> Check:
    """Each host's bandwidth and latency to others against the median of all.

    Args:
        survey: names the hosts.
        result: of `collective_check.py`.
    """
    largest = result["all_reduce"][-1]
    check = survey.check("collectives", f"{largest['bandwidth'] / 1e9:.3g} GB/s all-reduce of all ranks, latency "
                         f"{result['latency_s'] * 1e6:.0f} µs")  # fmt: skip
    if not result["is_right"]:
        check.say(FAIL, survey.answering, _WRONG_SUM)
    hosts = result["hosts"]
    if len(hosts) == 2:
        one = next(iter(hosts.values()))
        check.fine += f"; {_ONE_PAIR[0].format(bandwidth=one['bandwidth'] / 1e9, latency=one['latency_s'] * 1e6)}"
    if len(hosts) < 3:
        return check
    usual, usual_latency = (median(one[key] for one in hosts.values()) for key in ("bandwidth", "latency_s"))
    for name, one in hosts.items():
        if one["bandwidth"] < SLOW * usual:
            level = FAIL if one["bandwidth"] < FAR_TOO_SLOW * usual else WARN
            check.say(level, name, _BANDWIDTH, value=one["bandwidth"] / 1e9, usual=usual / 1e9)
        if one["latency_s"] > max(LATE * usual_latency, usual_latency + LEAST_LATENCY_S):
            level = FAIL if one["latency_s"] > FAR_TOO_LATE * usual_latency else WARN
            check.say(level, name, _LATENCY, value=one["latency_s"] * 1e6, usual=usual_latency * 1e6)
    return check


CHECKS = (meeting, interfaces)
