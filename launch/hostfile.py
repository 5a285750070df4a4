"""Hostfiles: which hosts there are, which of them a run takes, and whether they are those that were paid for.

DeepSpeed's syntax (`deepspeed/launcher/runner.py`), one line for a host: its name and `slots=8`. Beyond it, a line may
name a range (`n[01-04,07] slots=8`), and a third word `spare` marks hosts that replace lost ones. What DeepSpeed passes
over (`slots=0`, `slots=1x`, a missing file, a host under two names) is an error here: never a smaller job.
"""

import re
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.launch.host_names import expanded, folded

MAX_SLOTS = 1024  # of one host

_SLOTS = re.compile(r"slots=([0-9]{1,9})")


@dataclass(frozen=True)
class Host:
    """One host of a run.

    Attributes:
        name: as the user's ssh knows it.
        slots: ranks that it runs.
        is_spare: it only takes a lost host's place.
        devices: the device of each rank, by index; 0 to slots - 1 unless a filter chose others.
        line: where the hostfile names it.
    """

    name: str
    slots: int
    is_spare: bool = False
    devices: tuple[int, ...] = ()
    line: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        devices = tuple(self.devices) or tuple(range(self.slots))
        assert len(devices) == self.slots
        object.__setattr__(self, "devices", devices)


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The hosts of a hostfile, in its order; rank 0 is on the first that is no spare.

    Raises:
        InputError: there is no such file, or it has faults: all of them at once, each with its line and what is right.
    """
    hosts: dict[str, Host] = {}  # by the name in small letters: DNS knows no others
    faults = []
    for line, text in enumerate(re.split(r"\r\n|\r|\n", _text_of(Path(path))), start=1):
        words = text.partition("#")[0].split()
        if not words:
            continue
        of_line, its_faults = _read_line(words, line)
        faults += [f"  line {line}: {fault}." for fault in its_faults]
        twice: dict[int, list[str]] = {}
        for host in of_line:
            earlier = hosts.setdefault(host.name.lower(), host)
            if earlier is not host:
                twice.setdefault(earlier.line, []).append(host.name)
        faults += [f"  line {line}: {_folded_is(names)} on line {other} already." for other, names in twice.items()]
    if faults:
        raise InputError(f"The hostfile {path} has {len(faults)} fault(s):\n" + "\n".join(faults))
    if all(host.is_spare for host in hosts.values()):
        only_spares = " but spares" if hosts else ""
        raise InputError(f"The hostfile {path} names no host{only_spares}: write one a line, as in n1 slots=8.")
    return tuple(hosts.values())


def select(hosts: Sequence[Host], include: str | None = None, exclude: str | None = None) -> tuple[Host, ...]:
    """The hosts and slots that a filter in DeepSpeed's syntax leaves: `n1@n2:0,2` is n1, and n2's slots 0 and 2.

    Names may be ranges. A slot is the index of a device.

    Raises:
        InputError: both filters are given, one is malformed or names what there is not, or no host is left to run on.
    """
    if include and exclude:
        raise InputError("--include and --exclude cannot be given together: give one of them.")
    if not (include or exclude):
        return tuple(hosts)
    option, filter_text = ("--include", include) if include else ("--exclude", exclude)
    assert filter_text is not None
    named = _read_filter(hosts, filter_text, option)
    kept = []
    for host in hosts:
        chosen = named.get(host.name, set())
        devices = tuple(device for device in host.devices if (device in chosen) == bool(include))
        if devices:
            kept.append(replace(host, slots=len(devices), devices=devices))
    if all(host.is_spare for host in kept):
        spares = " but spares" if kept else ""
        raise InputError(f"{option} {filter_text} leaves no host{spares} of {described(hosts)}.")
    return tuple(kept)


def check_expected(hosts: Sequence[Host], expect_hosts: int | None = None, expect_slots: int | None = None) -> None:
    """Compare with what the user counts on; spares do not count.

    Raises:
        InputError: there are fewer or more hosts, or slots of all hosts together; the message lists what there is.
    """
    used = [host for host in hosts if not host.is_spare]
    slots = sum(host.slots for host in used)
    for option, expected, found in (("hosts", expect_hosts, len(used)), ("slots", expect_slots, slots)):
        if expected is not None and expected != found:
            raise InputError(
                f"--expect-{option} {expected}, and there are {found} {option}: {described(hosts)}. "
                "Mend the hostfile or the expectation; nothing was started."
            )


def described(hosts: Sequence[Host]) -> str:
    """Hosts in few words: `n[1-3] slots=8, n4 slots=2 (devices 0,2), n5 slots=8 spare`."""
    alike: dict[str, list[str]] = {}
    for host in hosts:
        plain = host.devices == tuple(range(host.slots))
        devices = "" if plain else f" (devices {','.join(map(str, host.devices))})"
        alike.setdefault(f"slots={host.slots}{devices}{' spare' if host.is_spare else ''}", []).append(host.name)
    return ", ".join(f"{folded(names)} {what}" for what, names in alike.items())


def check_addresses(hosts: Sequence[Host]) -> None:
    """Find out where this machine's ssh would reach each host.

    A name is looked up as ssh does it: through `HostName` of the user's configuration, and then in DNS or /etc/hosts.
    Behind a jump host, which alone may know it, the name that ssh would use stands for the address; so it does where
    the program called ssh is another one, which does not tell what it would do.

    Raises:
        InputError: a name is unknown, or two hosts of the file are one machine; all of them at once.
    """
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(hosts, pool.map(_address_and_port, hosts), strict=True))
    first: dict[tuple[str, str], Host] = {}
    faults = []
    for host, place in found.items():
        if place is None:
            faults.append(f"line {host.line}: {host.name} is unknown: correct it, or add it to /etc/hosts")
        elif (earlier := first.setdefault(place, host)) is not host:
            lines = f"lines {earlier.line} and {host.line}" if earlier.line != host.line else f"line {host.line}"
            faults.append(f"{lines}: {earlier.name} and {host.name} are one host, {place[0]}: leave out one of them")
    if faults:
        raise InputError("The hosts cannot be used:\n" + "\n".join(f"  {fault}." for fault in faults))


def _address_and_port(host: Host) -> tuple[str, str] | None:
    """Where ssh would connect to, by `ssh -G`; None where nobody knows."""
    try:
        answer = subprocess.run(["ssh", "-G", host.name], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        settings = dict(line.partition(" ")[::2] for line in answer.stdout.splitlines())
    except OSError:  # no ssh here: whoever uses it says so
        settings = {}
    name, port = settings.get("hostname", host.name), settings.get("port", "22")
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]), port
    except (OSError, UnicodeError):
        is_unknown = "hostname" in settings and not {"proxyjump", "proxycommand"} & settings.keys()
        return None if is_unknown else (name, port)


def _folded_is(names: Sequence[str]) -> str:
    return f"{folded(names)} {'is' if len(names) == 1 else 'are'}"


def _text_of(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = nearest(path.name, (other.name for other in path.parent.glob("*") if other.is_file()))
        hint = f"; there is {path.with_name(near)}" if near else ""
        raise InputError(f"The hostfile {path} does not exist{hint}.") from None
    except OSError as error:
        raise InputError(f"The hostfile {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The hostfile {path} is not a text file in UTF-8: save it as one.") from None
    return text


def _read_line(words: list[str], line: int) -> tuple[list[Host], list[str]]:
    """The hosts of a line that is not empty, and its faults."""
    if _SLOTS.fullmatch(words[0]) and len(words) > 1:
        return [], [f"the name of the host comes first: write {words[1]} {words[0]}"]
    names: list[str] = []
    faults: list[str] = []
    try:
        names = expanded(words[0])
    except InputError as error:
        faults.append(str(error))
    name = words[0] if names else "NAME"
    slots_fault = _slots_fault(name, words[1:])
    if slots_fault and (names or len(words) > 1):  # a lone word that is no name has its slots in that fault's advice
        faults.append(slots_fault)
    if not slots_fault and words[2:] not in ([], ["spare"]):
        faults.append(_extra_fault(words, name))
    if faults:
        return [], faults
    slots = int(words[1].partition("=")[2])
    return [Host(one, slots, len(words) > 2, line=line) for one in names], []


def _slots_fault(name: str, words: list[str]) -> str | None:
    """What is wrong with the second word of a line."""
    if not words:
        return f"the slots are missing: write {name} slots=NUMBER"
    match = _SLOTS.fullmatch(words[0])
    if match is None:
        number = re.search(r"(?<![-0-9])[1-9][0-9]*", " ".join(words))
        return f"{' '.join(words)!r} does not give the slots: write {name} slots={number[0] if number else 'NUMBER'}"
    if int(match[1]) == 0:
        return f"{words[0]} would leave the host out: give a number from 1 on, or leave out the line"
    if int(match[1]) > MAX_SLOTS:
        return f"{words[0]}: a host has at most {MAX_SLOTS} slots, one for each rank"
    return None


def _extra_fault(words: list[str], name: str) -> str:
    """What is wrong with the words after the slots."""
    extra = " ".join(words[2:])
    if nearest(words[2].lower(), ["spare", "max_slots="]) == "spare" and words[2].lower()[:2] == "sp":
        return f"{extra!r} should be the word spare: write {name} {words[1]} spare"
    return f"{extra!r} is not understood: write {name} {words[1]}, and spare after it for a spare host"


def _read_filter(hosts: Sequence[Host], text: str, option: str) -> dict[str, set[int]]:
    """The devices that a filter names, by host."""
    known = {host.name: host for host in hosts}
    named: dict[str, set[int]] = {}
    for part in text.split("@"):
        pattern, colon, slots = part.strip().partition(":")
        if not pattern or (colon and not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", slots)):
            raise InputError(f"{option} {text}: {part!r} should be a host, or a host with slots as in n2:0,2.")
        try:
            names = expanded(pattern)
        except InputError as error:
            raise InputError(f"{option} {text}: {error}.") from None
        for name in names:
            if name not in known:
                raise InputError(f"{option} {text}: there is no host {name}; the nearest is {nearest(name, known)}.")
            chosen = set(map(int, slots.split(","))) if colon else set(known[name].devices)
            if missing := sorted(chosen - set(known[name].devices)):
                there = ",".join(map(str, known[name].devices))
                raise InputError(f"{option} {text}: {name} has no slot {missing[0]}; its slots are {there}.")
            named[name] = named.get(name, set()) | chosen
    return named
