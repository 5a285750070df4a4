"""What the checks before a start find: on which hosts, how bad, what is so, and the next step to take."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from deltalm_ds.errors import DONE_EXIT_CODE, InputError
from deltalm_ds.launch.host_names import folded
from deltalm_ds.launch.preflight.facts import Facts, Unknown

PASS, WARN, FAIL = LEVELS = ("PASS", "WARN", "FAIL")
_UNKNOWN = "what the host tells of it is not known: {error}", "log in there, and mend what it says"
_DIFFERS = "{thing} {value}, the others {usual}"
_NO_MAJORITY = "{thing} differs: {values}"

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """One thing that is so on some hosts.

    Attributes:
        check: which check found it.
        level: PASS, WARN (it goes on) or FAIL (nothing is started).
        hosts: by name.
        what: what is so. next_step: what to do about it.
    """

    check: str
    level: str
    hosts: tuple[str, ...]
    what: str
    next_step: str = ""


@dataclass
class Check:
    """One check of all hosts: collects what it finds, and has the rest of the hosts pass.

    Attributes:
        name: of the check.
        hosts: all that it is about.
        fine: what is so where nothing is found.
    """

    name: str
    hosts: Sequence[str]
    fine: str = "as it should be"
    found: list[Finding] = field(default_factory=list)

    def say(self, level: str, hosts: str | Iterable[str], text: tuple[str, str], **values: Any) -> None:
        """Add a finding; `text` is what is so and the next step, with holes for the values."""
        names = (hosts,) if isinstance(hosts, str) else tuple(hosts)
        self.found.append(Finding(self.name, level, names, text[0].format(**values), text[1].format(**values)))

    def parts(self, facts: Mapping[str, Facts], part: str, level: str = FAIL) -> dict[str, Any]:
        """A part of the facts of the hosts that know it; that others do not is a finding, or they were not asked."""
        values = {name: value for name in self.hosts if (value := getattr(facts[name], part)) is not None}
        self.hosts = tuple(values)
        for name, value in values.items():
            if isinstance(value, Unknown):
                self.say(level, name, _UNKNOWN, error=value.error)
        return {name: value for name, value in values.items() if not isinstance(value, Unknown)}

    def alike(
        self,
        level: str,
        thing: str,
        values: Mapping[str, Value],
        next_step: str,
        show: Callable[[Value], str] = str,
    ) -> None:
        """Find the hosts whose value is not that of most.

        Args:
            level: of what is found.
            thing: what the values are.
            values: one of each host.
            next_step: where one differs.
            show: a value as text.
        """
        usual = majority(values.values())
        if len(set(values.values())) > 1 and usual is None:
            by_value: dict[Value, list[str]] = {}
            for name, value in values.items():
                by_value.setdefault(value, []).append(name)
            told = "; ".join(f"{folded(names)} {show(value)}" for value, names in by_value.items())
            self.say(level, values, (_NO_MAJORITY, next_step), thing=thing, values=told)
            return
        for name, value in values.items():
            if usual is not None and value != usual:
                text = _DIFFERS, next_step
                self.say(level, name, text, thing=thing, value=show(value), usual=show(usual))

    def findings(self) -> Iterator[Finding]:
        """All that was found, the same of several hosts together, and that the other hosts pass."""
        hosts: dict[Finding, dict[str, None]] = {}
        for one in self.found:
            alike = Finding(one.check, one.level, (), one.what, one.next_step)
            hosts.setdefault(alike, {}).update(dict.fromkeys(one.hosts))
        faulty = {name for names in hosts.values() for name in names}
        if passing := tuple(name for name in self.hosts if name not in faulty):
            yield Finding(self.name, PASS, passing, self.fine)
        for one, names in hosts.items():
            yield Finding(one.check, one.level, tuple(names), one.what, one.next_step)


def majority(values: Iterable[Value]) -> Value | None:
    """The value that more have than have any other; None where two share the lead."""
    leading = Counter(values).most_common(2)
    if not leading or (len(leading) == 2 and leading[0][1] == leading[1][1]):
        return None
    return leading[0][0]


def verdict(findings: Iterable[Finding]) -> str:
    """The worst level of them."""
    return max((one.level for one in findings), key=LEVELS.index, default=PASS)


def spared(findings: Iterable[Finding], spares: AbstractSet[str]) -> Iterator[Finding]:
    """Findings in which what fails on spares is a warning: it keeps no run from starting."""
    for one in findings:
        of_spares, of_others = (tuple(n for n in one.hosts if (n in spares) == which) for which in (True, False))
        if one.level != FAIL or not of_spares:
            yield one
            continue
        if of_others:
            yield replace(one, hosts=of_others)
        yield replace(one, hosts=of_spares, level=WARN)


@dataclass(frozen=True)
class Report:
    """What was found on all hosts."""

    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """PASS, WARN (nothing keeps a run from starting) or FAIL."""
        return verdict(self.findings)

    @property
    def exit_code(self) -> int:
        """0, or that of wrong input."""
        return InputError.exit_code if self.verdict == FAIL else DONE_EXIT_CODE

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Check, hosts as ranges, level, what is so, next step; for a table."""
        return [(one.check, _folded(one.hosts), one.level, one.what, one.next_step) for one in self.findings]

    def summary(self) -> str:
        """One line: the verdict and how many findings there are of each level."""
        counts = {level: sum(one.level == level for one in self.findings) for level in LEVELS}
        return f"{self.verdict}: " + ", ".join(f"{count} {level}" for level, count in counts.items() if count)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "findings": [asdict(one) for one in self.findings],
        }


def _folded(names: Sequence[str]) -> str:
    ranges = [name for name in names if " " not in name]
    others = [name for name in names if " " in name]  # this machine
    return ",".join([*([folded(ranges)] if ranges else []), *others])
