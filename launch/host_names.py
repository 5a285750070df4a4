"""Names of hosts as people write them in hostfiles and filters: `n1`, `10.0.0.7`, and ranges as in `n[01-04,07]`.

Only what no shell, no ssh and no ClusterShell reads as anything else is a name.
"""

import ipaddress
import itertools
import math
import re
from collections.abc import Iterable

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from deltalm_ds.errors import InputError

MAX_HOSTS = 10_000  # that one range may stand for: more is a slip of the pen

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_PATTERN = re.compile(r"[A-Za-z0-9._-]*(?:\[[0-9,-]+\][A-Za-z0-9._-]*)*")
_RANGES = re.compile(r"\[([^\]]*)\]")
_FROM_TO = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_OTHER_RANGE = re.compile(r"([A-Za-z0-9._-]+)[\[{(<]([0-9]+)(?:-|\.\.|:)([0-9]+)[\]})>]([A-Za-z0-9._-]*)")


def expanded(pattern: str) -> list[str]:
    """The hosts that a name or a range of names stands for: `n[01-02,07]` -> n01, n02, n07.

    Raises:
        InputError: it is no name of a host, or a faulty range; without a full stop, for a line number to go before.
    """
    if not _PATTERN.fullmatch(pattern):
        raise InputError(_no_name(pattern))
    ranges = [_pieces(text, pattern) for text in _RANGES.findall(pattern)]
    size = math.prod(sum(len(numbers) for numbers, _ in pieces) for pieces in ranges)
    if size > MAX_HOSTS:
        raise InputError(f"{pattern!r} stands for more than {MAX_HOSTS:,} hosts")
    texts = [[str(number).zfill(width) for numbers, width in pieces for number in numbers] for pieces in ranges]
    form = _RANGES.sub("{}", pattern)
    names = [form.format(*chosen) for chosen in itertools.product(*texts)]
    if len(set(names)) < len(names):
        raise InputError(f"{pattern!r} names a host twice")
    for name in names:
        _check_name(name)
    return names


def folded(names: Iterable[str]) -> str:
    """Names as one word with ranges: n1, n2, n3 -> `n[1-3]`."""
    return str(NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise InputError(_no_name(name))
    if re.fullmatch(r"[0-9.]+", name):  # 10.1 would be read as 10.0.0.1
        try:
            address = ipaddress.IPv4Address(name)
        except ValueError:
            raise InputError(f"{name!r} is neither a name nor a whole address as in 10.0.0.7") from None
        if address.is_unspecified or address.is_multicast or address.is_reserved:
            raise InputError(f"{name} is no address of a single host")


def _pieces(text: str, pattern: str) -> list[tuple[range, int]]:
    """What stands in a pair of brackets: numbers, and the width that zeros fill them to."""
    pieces = []
    for piece in text.split(","):
        match = _FROM_TO.fullmatch(piece)
        if match is None:
            raise InputError(f"{pattern!r} is no range of hosts: write one as in n[1-4] or n[01-04,07]")
        first, last = match[1], match[2] or match[1]
        width = max(len(first), len(last))
        if len(first) != len(last) and (last[0] == "0" or first[0] == "0" != first):
            raise InputError(f"the range {piece} mixes widths: write {first.zfill(width)}-{last.zfill(width)}")
        if int(first) > int(last):
            raise InputError(f"the range {piece} runs backwards: write {last}-{first}")
        pieces.append((range(int(first), int(last) + 1), len(first)))
    return pieces


def _no_name(word: str) -> str:
    """Why a word is no name of a host, and what was probably meant."""
    if "@" in word:
        return f"{word!r}: a user's name belongs in ~/.ssh/config (User); write {word.rpartition('@')[2] or 'NAME'}"
    if ":" in word and _is_ipv6(word):
        return f"{word!r}: an IPv6 address needs a name here, given in /etc/hosts or ~/.ssh/config (HostName)"
    if match := _OTHER_RANGE.fullmatch(word):
        return f"{word!r} is no range of hosts: write {match[1]}[{match[2]}-{match[3]}]{match[4]}"
    if match := re.fullmatch(r"([A-Za-z0-9._-]+):([0-9]+)", word):
        return f"{word!r} is no name: write {match[1]} slots={match[2]}; a port belongs in ~/.ssh/config (Port)"
    if set("[]{}*") & set(word):
        return f"{word!r} is no range of hosts: write one as in n[1-4] or n[01-04,07], without spaces"
    if "," in _RANGES.sub("", word):
        return f"{word!r}: write one host a line, or hosts with numbers as a range, as in n[1-4]"
    return (
        f"{word!a} is no name of a host: one has letters, digits, '.', '-' and '_', "
        "and begins and ends with a letter, a digit or '_'"
    )


def _is_ipv6(word: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(word.strip("[]")))
    except ValueError:
        return False
