"""Hostfiles against DeepSpeed's own parser and ClusterShell, and each thing that can be wrong with one."""

from pathlib import Path

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.launch import hostfile as hostfile_module
from deltalm_ds.launch.host_names import expanded, folded
from deltalm_ds.launch.hostfile import Host, check_addresses, check_expected, described, read_hostfile, select
from deltalm_ds.recipe.loading import load_recipe, recipe_path

FAULTS = {
    # what DeepSpeed passes over
    "n1 slots=0": "line 1: slots=0 would leave the host out: give a number from 1 on, or leave out the line.",
    "n1 slots=1x": "line 1: 'slots=1x' does not give the slots: write n1 slots=1.",
    "n1 slots=0\nn2 slots=0": "line 2: slots=0 would leave the host out",
    "n1 slots=4\nn1 slots=4": "line 2: n1 is on line 1 already.",
    # the slots
    "n1": "line 1: the slots are missing: write n1 slots=NUMBER.",
    "n1 8": "line 1: '8' does not give the slots: write n1 slots=8.",
    "n1 slots": "line 1: 'slots' does not give the slots: write n1 slots=NUMBER.",
    "n1 slots=": "line 1: 'slots=' does not give the slots: write n1 slots=NUMBER.",
    "n1 slots = 8": "line 1: 'slots = 8' does not give the slots: write n1 slots=8.",
    "n1 slots:8": "line 1: 'slots:8' does not give the slots: write n1 slots=8.",
    "n1 slot=8": "line 1: 'slot=8' does not give the slots: write n1 slots=8.",
    "n1 Slots=8": "line 1: 'Slots=8' does not give the slots: write n1 slots=8.",
    "n1 slots=-1": "line 1: 'slots=-1' does not give the slots: write n1 slots=NUMBER.",
    "n1 slots=eight": "line 1: 'slots=eight' does not give the slots: write n1 slots=NUMBER.",
    "n1 slots=\uff18": "line 1: 'slots=\uff18' does not give the slots: write n1 slots=NUMBER.",
    "n1 slots=1025": "line 1: slots=1025: a host has at most 1024 slots, one for each rank.",
    f"n1 slots={'9' * 5000}": "does not give the slots: write n1 slots=",
    "n1 slots=8,": "line 1: 'slots=8,' does not give the slots: write n1 slots=8.",
    "slots=8 n1": "line 1: the name of the host comes first: write n1 slots=8.",
    "slots=8": "line 1: 'slots=8' is no name of a host",
    # the third word
    "n1 slots=8 Spare": "line 1: 'Spare' should be the word spare: write n1 slots=8 spare.",
    "n1 slots=8 spare spare": "line 1: 'spare spare' should be the word spare: write n1 slots=8 spare.",
    "n1 slots=8 max_slots=8": "'max_slots=8' is not understood: write n1 slots=8, and spare after it for a spare host.",
    "n1 slots=8 slots=4": "line 1: 'slots=4' is not understood: write n1 slots=8,",
    # the name
    "n1:8": "line 1: 'n1:8' is no name: write n1 slots=8; a port belongs in ~/.ssh/config (Port).",
    "root@n1 slots=8": "line 1: 'root@n1': a user's name belongs in ~/.ssh/config (User); write n1.",
    "@all slots=8": "line 1: '@all': a user's name belongs in ~/.ssh/config (User); write all.",
    "fe80::1 slots=8": "line 1: 'fe80::1': an IPv6 address needs a name here",
    "-oProxyCommand=x slots=8": "line 1: '-oProxyCommand=x' is no name of a host",
    "n1- slots=8": "line 1: 'n1-' is no name of a host",
    ".n1 slots=8": "line 1: '.n1' is no name of a host",
    "n1;reboot slots=8": "line 1: 'n1;reboot' is no name of a host",
    "$(n1) slots=8": "line 1: '$(n1)' is no name of a host",
    "n1\u200b slots=8": r"line 1: 'n1\u200b' is no name of a host",
    "b\u00fccher slots=8": r"line 1: 'b\xfccher' is no name of a host",
    "10.1 slots=8": "line 1: '10.1' is neither a name nor a whole address as in 10.0.0.7.",
    "10.0.0.256 slots=8": "line 1: '10.0.0.256' is neither a name nor a whole address as in 10.0.0.7.",
    "0.0.0.0 slots=8": "line 1: 0.0.0.0 is no address of a single host.",
    f"{'n' * 254} slots=8": "is no name of a host",
    "n1,n2 slots=8": "line 1: 'n1,n2': write one host a line, or hosts with numbers as a range, as in n[1-4].",
    "N1 slots=4\nn1 slots=4": "line 2: n1 is on line 1 already.",
    # ranges
    "n[4-1] slots=8": "line 1: the range 4-1 runs backwards: write 1-4.",
    "n[1-04] slots=8": "line 1: the range 1-04 mixes widths: write 01-04.",
    "n[01-4] slots=8": "line 1: the range 01-4 mixes widths: write 01-04.",
    "n[1-3,2] slots=8": "line 1: 'n[1-3,2]' names a host twice.",
    "n{1..4} slots=8": "line 1: 'n{1..4}' is no range of hosts: write n[1-4].",
    "n[1:4] slots=8": "line 1: 'n[1:4]' is no range of hosts: write n[1-4].",
    "n(1-4)-ib slots=8": "line 1: 'n(1-4)-ib' is no range of hosts: write n[1-4]-ib.",
    "n[] slots=8": "line 1: 'n[]' is no range of hosts: write one as in n[1-4] or n[01-04,07], without spaces.",
    "n[1-3 slots=8": "line 1: 'n[1-3' is no range of hosts",
    "n[1, 2] slots=8": "line 1: 'n[1,' is no range of hosts: write one as in n[1-4] or n[01-04,07], without spaces.",
    "n[1,,2] slots=8": "line 1: 'n[1,,2]' is no range of hosts",
    "n[-3] slots=8": "line 1: 'n[-3]' is no range of hosts",
    "n* slots=8": "line 1: 'n*' is no range of hosts",
    "[1-3] slots=8": "line 1: '1' is neither a name nor a whole address",
    "n[1-999999999] slots=8": "line 1: 'n[1-999999999]' stands for more than 10,000 hosts.",
    f"n[1-{'9' * 5000}] slots=8": "is no range of hosts",
    "n7 slots=8\nn[1-9] slots=8\nn[5-8] slots=8": "line 3: n[5-6,8] are on line 2 already.",
    # the file
    "": "names no host: write one a line, as in n1 slots=8.",
    "# n1 slots=8\n\n": "names no host: write one a line, as in n1 slots=8.",
    "n1 slots=8 spare": "names no host but spares: write one a line, as in n1 slots=8.",
    "[workers]\nn1": "line 1: '[workers]' is no range of hosts",
}


def hostfile(folder: Path, text: str) -> Path:
    path = folder / "hosts"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("text", FAULTS)
def test_faulty_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_hostfile(hostfile(tmp_path, text))
    assert FAULTS[text] in str(raised.value)
    assert str(tmp_path / "hosts") in str(raised.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_hostfile(hostfile(tmp_path, "n1 slots=8\r\n\r\n-n2 slots=0\r\nn3 slots=8\r\nn1 slots=4\r\n"))
    lines = str(raised.value).splitlines()
    assert lines[0].endswith("has 3 fault(s):")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["line 3", "line 3", "line 5"]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hostfile.txt").touch()
    with pytest.raises(InputError, match=r"does not exist; there is .*hostfile\.txt"):
        read_hostfile(tmp_path / "hosts")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_hostfile(tmp_path)
    (tmp_path / "hosts").write_bytes("n1 slots=8\n".encode("utf-16"))
    with pytest.raises(InputError, match="is not a text file in UTF-8"):
        read_hostfile(tmp_path / "hosts")


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    """A byte-order mark, Windows line ends, comments, blank lines, ranges in the order given, spares."""
    text = "\ufeff# rack 1\r\n\r\nn[02,01] slots=8   # two\r\n\t10.0.0.7\tslots=4\r\nr[1-2]n[8-10]-ib slots=2 spare\r\n"
    hosts = read_hostfile(hostfile(tmp_path, text))
    spares = [f"r{rack}n{number}-ib" for rack in (1, 2) for number in (8, 9, 10)]
    expected = [("n02", 8), ("n01", 8), ("10.0.0.7", 4), *((name, 2) for name in spares)]
    assert [(host.name, host.slots) for host in hosts] == expected
    assert [host.name for host in hosts if host.is_spare] == spares
    assert [host.line for host in hosts] == [3, 3, 4] + [5] * 6
    assert described(hosts) == "n[01-02] slots=8, 10.0.0.7 slots=4, r[1-2]n[8-10]-ib slots=2 spare"


def test_the_example_is_the_cluster_of_its_recipe() -> None:
    examples = Path(hostfile_module.__file__).parent / "examples"
    hosts = read_hostfile(examples / "hostfile.32xV100")
    check_expected(hosts, 4, 32)
    recipe = load_recipe(recipe_path("pretrain_base_32xV100"))
    assert recipe.deepspeed.startswith("fp16_")  # a V100 has no bfloat16
    sequences = recipe.batch.tokens_per_step / (512 + 114)
    assert sequences == 2048  # [facts: pre-training]
    assert recipe.batch.tokens_per_step / 32 < 2 * recipe.batch.micro_batch_tokens


NUMBERS = st.integers(0, 2000)
PIECES = st.tuples(NUMBERS, st.integers(0, 30), st.integers(1, 4)).map(
    lambda drawn: (
        f"{drawn[0]:0{drawn[2]}d}" if drawn[1] == 0 else f"{drawn[0]:0{drawn[2]}d}-{drawn[0] + drawn[1]:0{drawn[2]}d}"
    )
)
PATTERNS = st.tuples(st.sampled_from(["n", "gpu-", "r2_n", "a.b"]), st.lists(PIECES, min_size=1, max_size=4)).map(
    lambda drawn: f"{drawn[0]}[{','.join(drawn[1])}]"
)


@given(PATTERNS)
@settings(max_examples=150, deadline=None)
def test_ranges_against_clustershell(pattern: str) -> None:
    """Where no host is named twice, a range means what ClusterShell takes it to mean, and folds back."""
    try:
        reference = set(NodeSet(pattern, resolver=RESOLVER_NOGROUP))
    except Exception:
        reference = None  # widths that differ
    try:
        names = expanded(pattern)
    except InputError as error:
        assert reference is None or "twice" in str(error)
        return
    assert set(names) == reference
    assert set(NodeSet(folded(names), resolver=RESOLVER_NOGROUP)) == reference


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,6}[a-z0-9]", fullmatch=True), min_size=1, max_size=6, unique=True)
SLOTS = st.integers(1, 8)


@given(NAMES.flatmap(lambda names: st.tuples(*(st.tuples(st.just(name), SLOTS) for name in names))), st.data())
@settings(max_examples=100, deadline=None)
def test_against_deepspeed(tmp_path_factory: pytest.TempPathFactory, hosts: tuple, data: st.DataObject) -> None:
    """A plain hostfile and a filter mean what they mean to DeepSpeed, where it does not pass over a fault."""
    noise = st.sampled_from(["", "# comment\n", "\n", "  \n"])
    lines = [
        f"{data.draw(noise)}{name}{data.draw(st.sampled_from([' ', '  ', chr(9)]))}slots={n}\n" for name, n in hosts
    ]
    path = hostfile(tmp_path_factory.getbasetemp(), "".join(lines))
    ours = read_hostfile(path)
    theirs = fetch_hostfile(str(path))
    assert [(host.name, host.slots) for host in ours] == list(theirs.items())

    chosen = data.draw(st.lists(st.sampled_from(hosts), min_size=1, unique=True))
    parts = []
    for name, slots in chosen:
        some = data.draw(st.lists(st.integers(0, slots - 1), max_size=3))
        parts.append(f"{name}:{','.join(map(str, some))}" if some else name)
    for include, exclude in (("@".join(parts), ""), ("", "@".join(parts))):
        # DeepSpeed's own removal fails at a slot named twice, which its parser has made unique
        reference = parse_inclusion_exclusion(theirs, include, exclude)
        if not reference:
            with pytest.raises(InputError, match="leaves no host"):
                select(ours, include, exclude)
            continue
        assert {host.name: list(host.devices) for host in select(ours, include, exclude)} == dict(reference)


HOSTS = (*(Host(f"n{number}", 4, line=1) for number in (1, 2, 3)), Host("s1", 4, is_spare=True, line=2))


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("n1", "n2", "--include and --exclude cannot be given together"),
        ("n4", None, "--include n4: there is no host n4; the nearest is n3."),
        (None, "n[2-4]", "there is no host n4; the nearest is n3."),
        ("n1:4", None, "--include n1:4: n1 has no slot 4; its slots are 0,1,2,3."),
        ("n1:", None, "'n1:' should be a host, or a host with slots as in n2:0,2."),
        ("n1:0-2", None, "'n1:0-2' should be a host, or a host with slots as in n2:0,2."),
        ("n1:0:2", None, "'n1:0:2' should be a host"),
        ("n1@@n2", None, "'' should be a host"),
        ("n1,n2", None, "--include n1,n2: 'n1,n2': write one host"),
        ("n[1-2", None, "--include n[1-2: 'n[1-2' is no range of hosts"),
        ("s1", None, "--include s1 leaves no host but spares of n[1-3] slots=4, s1 slots=4 spare."),
        (None, "n[1-3]@s1", "--exclude n[1-3]@s1 leaves no host of n[1-3] slots=4, s1 slots=4 spare."),
    ],
)
def test_faulty_filter(include: str | None, exclude: str | None, message: str) -> None:
    with pytest.raises(InputError) as raised:
        select(HOSTS, include, exclude)
    assert message in str(raised.value)


def test_filters() -> None:
    assert select(HOSTS) == HOSTS
    assert described(select(HOSTS, "n[1-2]:0,2@n3")) == "n[1-2] slots=2 (devices 0,2), n3 slots=4"
    assert described(select(HOSTS, exclude="n2@n3:3")) == "n1 slots=4, n3 slots=3, s1 slots=4 spare"
    twice = select(select(HOSTS, exclude="n1:0"), "n1:1,3")
    assert described(twice) == "n1 slots=2 (devices 1,3)"


def test_expectations() -> None:
    check_expected(HOSTS)
    check_expected(HOSTS, 3, 12)
    for expected, message in [
        ((4, None), "--expect-hosts 4, and there are 3 hosts: n[1-3] slots=4, s1 slots=4 spare."),
        ((2, None), "--expect-hosts 2, and there are 3 hosts"),
        ((3, 16), "--expect-slots 16, and there are 12 slots"),
    ]:
        with pytest.raises(InputError) as raised:
            check_expected(HOSTS, *expected)
        assert message in str(raised.value)


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the user's ssh configuration first; what only a jump host knows stays a name; one machine is one host."""
    config = tmp_path / "config"
    config.write_text(
        "Host a\n HostName 127.0.0.2\nHost b\n HostName 127.0.0.3\nHost c\n HostName inner.invalid\n ProxyJump a\n"
        "Host d\n HostName 127.0.0.2\n Port 2222\nHost e\n HostName 127.0.0.3\n"
        "Host f\n HostName inner.invalid\n ProxyJump a\n"
    )
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {config} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    hosts = [Host(name, 1, line=line) for line, name in enumerate("abcd", start=1)]
    check_addresses(hosts)
    with pytest.raises(InputError) as raised:
        check_addresses([*hosts, Host("e", 1, line=5), Host("nowhere.invalid", 1, line=6), Host("f", 1, line=7)])
    assert str(raised.value).splitlines()[1:] == [
        "  lines 2 and 5: b and e are one host, 127.0.0.3: leave out one of them.",
        "  line 6: nowhere.invalid is unknown: correct it, or add it to /etc/hosts.",
        "  lines 3 and 7: c and f are one host, inner.invalid: leave out one of them.",
    ]
    ssh.write_text("#!/bin/sh\n")
    check_addresses([Host("known.to.it.invalid", 1)])
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    check_addresses([Host("localhost", 1)])
