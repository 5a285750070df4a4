"""`deltalm launch --check` over a fake ssh: real probes on hosts that are all this machine, each broken in its way."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.preflight import check as preflight
from deltalm_ds.launch.preflight import probe
from deltalm_ds.launch.preflight.check import check_hosts
from deltalm_ds.launch.preflight.facts import Facts
from deltalm_ds.launch.preflight.findings import FAIL, PASS, WARN, Finding, Report
from deltalm_ds.recipe.loading import load_recipe
from tests.cli.command import deltalm
from tests.faults.tiny import write_experiment
from tests.launch import fake_hosts

# A host's own behaviour: its command, or what that prints, goes through a Python expression of `text`.
OTHER_COMMAND = """#!{python}
import re, subprocess, sys
text = " ".join(sys.argv[1:])
text = {command}
done = subprocess.run(["sh", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
text = done.stdout
print({output}, end="")
sys.exit(done.returncode)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture
def ssh_bin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return fake_hosts.put_on_path(monkeypatch, tmp_path)


def behave(folder: Path, name: str, command: str = "text", output: str = "text") -> None:
    fake_hosts.write_program(folder / name, OTHER_COMMAND.format(python=sys.executable, command=command, output=output))


def check(recipe: Path, run: Path, *names: str) -> Report:
    report, _ = check_hosts([Host(name, 1) for name in names], load_recipe(recipe), run, recipe, thoroughly=False)
    return report


def of_host(report: Report, name: str) -> list[Finding]:
    return [one for one in report.findings if one.level == FAIL and name in one.hosts]


def test_sound_hosts(ssh_bin: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "new"
    report = check(recipe, run, "n1", "n2")
    assert [one for one in report.findings if one.level == FAIL] == []
    assert report.exit_code == 0
    levels = {one.check: one.level for one in report.findings}
    sure = ("reachable", "clock", "code", "packages", "run directory", "recipe", "data", "first host", "network")
    assert {levels[name] for name in sure} == {PASS}
    assert json.loads(json.dumps(report.as_json()))["verdict"] == report.verdict
    assert {row[1] for row in report.rows()} == {"n[1-2]"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ssh_bin"]  # nothing of the check is left


def test_each_host_is_named_with_its_own_fault(ssh_bin: Path, recipe: Path, tmp_path: Path) -> None:
    """In one check, as on a bad day; the sound hosts are named by none of them."""
    fake_hosts.refuse(ssh_bin, "refuses", "ssh: connect to host refuses port 22: Connection refused\n")
    behave(ssh_bin, "unshared", command="re.sub(r'[.]check-', '.other-', text)")
    behave(ssh_bin, "old", output='re.sub(\'"deepspeed": "[^"]*"\', \'"deepspeed": "0.19.7"\', text)')
    behave(ssh_bin, "late", output="re.sub(r'(clock\": .)1', r'\\g<1>2', text)")
    behave(ssh_bin, "strange", output='re.sub(\'"lock": "[a-z]*"\', \'"lock": 7\', text)')
    behave(ssh_bin, "bare", command="re.sub(r'env .*? -m', 'env /nowhere/python -m', text)")
    behave(ssh_bin, "greets", output="'Welcome!\\n{}\\n{\"deltalm\\n' + text")
    names = ("n1", "refuses", "unshared", "old", "late", "strange", "bare", "greets")
    report = check(recipe, tmp_path / "run", *names)
    assert report.exit_code == 2

    expected = {
        "refuses": ("reachable", "refuses the connection", "sshd"),
        "unshared": ("run directory", "does not find what this machine wrote", "all hosts mount"),
        "old": ("packages", r"deepspeed 0\.19\.7, the others 0\.19\.8", "pip install"),
        "late": ("clock", "ahead of that of the others", "NTP"),
        "strange": ("reachable", r"not understood: folder.*lock", "same code"),
        "bare": ("reachable", "/nowhere/python", "same path"),
    }
    for name, (of_check, what, next_step) in expected.items():
        fault = next(one for one in of_host(report, name) if one.check == of_check)
        assert re.search(what, fault.what) and next_step in fault.next_step, fault
    for name in ("n1", "greets"):
        assert of_host(report, name) == []
    named = [(name, one.check) for name in names for one in of_host(report, name)]
    assert named == [(name, expected[name][0]) for name in names if name in expected]  # each once


def test_an_answer_that_takes_long_is_no_clock_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of the clocks, by a time of the test's own: that of `slow` is right, that of `late` 5 s behind."""
    now = 1000.0
    monkeypatch.setattr(preflight, "time", SimpleNamespace(time=lambda: now))

    def run_command(names, command, timeout, on_line, on_end, num):
        nonlocal now
        now = 1010.0
        for name, told, ran in (("slow", 1004.0, 3.0), ("late", 1004.5, 9.0), ("slow", 1009.0, 8.0)):
            on_line(name, json.dumps({probe.CLOCK: [told, ran]}))
        on_line("slow", json.dumps({probe.CLOCK: "twelve"}))
        return {}

    _, clocks = preflight._ask(["slow", "late"], tmp_path, run_command)
    assert clocks == {"slow": (-1.0, 1.0), "late": (-5.5, -4.5)}


def test_a_copy_of_the_file_system_is_not_shared(
    ssh_bin: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was there when the host began is there, and nothing that comes later."""
    monkeypatch.setattr(preflight, "WAIT_S", 4.0)
    copied = f"cp -r \\\\1 {tmp_path}/own;"
    behave(ssh_bin, "n2", command=f"re.sub(r'.* (\\S*/[.]check-\\S*) .*', '{copied}', text) + "
           f"re.sub(r'\\S*/[.]check-\\S*', '{tmp_path}/own', text)")  # fmt: skip
    report = check(recipe, tmp_path / "run", "n1", "n2")
    faults = {one.hosts: one.what for one in report.findings if one.check == "run directory" and one.level == FAIL}
    assert faults == {
        ("n1",): "it does not see what n2 wrote beside the run directory",
        ("n2",): "it does not see what n1 wrote beside the run directory",
    }


def test_a_check_that_is_ended_leaves_nothing(ssh_bin: Path, recipe: Path, tmp_path: Path) -> None:
    fake_hosts.write_program(ssh_bin / "n1", f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    source = (
        "from pathlib import Path\nfrom deltalm_ds.launch.preflight.check import *\n"
        "from deltalm_ds.recipe.loading import load_recipe\n"
        f"check_hosts([Host('n1', 1)], load_recipe('{recipe}'), Path('{tmp_path}/run'), thoroughly=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    assert list(tmp_path.glob(".check-*"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert not list(tmp_path.glob(".check-*"))
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_run_directory_that_cannot_be_made(ssh_bin: Path, recipe: Path) -> None:
    with pytest.raises(InputError, match=r"/proc cannot be written to"):
        check(recipe, Path("/proc/run"), "n1")


def test_inputs_are_told_apart_by_content(recipe: Path, tmp_path: Path) -> None:
    asked = preflight._inputs_of(load_recipe(recipe))
    sound = probe.inputs(**asked)
    assert sound.keys() == {"vocabulary", "data.train.0.path", "data.train.1.path", "data.train.2.path",
                            "validation.shards"}  # fmt: skip
    assert all(isinstance(value, str) for value in sound.values())

    copy = tmp_path / "copy"
    shutil.copytree(asked["data"]["data.train.0.path"], copy)
    moved = asked | {"data": asked["data"] | {"data.train.0.path": str(copy)}, "vocabulary": str(tmp_path)}
    assert probe.inputs(**moved)["data.train.0.path"] == sound["data.train.0.path"]
    assert "vocabulary.json does not exist" in probe.inputs(**moved)["vocabulary"]["error"]
    shard = next(copy.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert shard.name in probe.inputs(**moved)["data.train.0.path"]["error"]


def test_directories_are_told_apart_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "WHOLE_FILE_BYTES", 4)
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    before = probe.directory_digest(tmp_path, "*")
    for changed in (b"x123456789", b"012345678x", b"01234567890"):
        (tmp_path / "model.safetensors").write_bytes(changed)
        assert probe.directory_digest(tmp_path, "*") != before
    (tmp_path / "model.safetensors").write_bytes(b"0123456789")
    assert probe.directory_digest(tmp_path, "*") == before
    with pytest.raises(InputError, match="is not there"):
        probe.directory_digest(tmp_path, "dev.*")


def test_the_command_with_its_collective_test(ssh_bin: Path, recipe: Path, tmp_path: Path) -> None:
    """Two hosts with a rank each, started as those of a run are."""
    (tmp_path / "hosts").write_text("127.0.0.[2-3] slots=1\n")
    arguments = "launch", "--check", "--json", "--hostfile", tmp_path / "hosts", recipe, "--out", tmp_path / "run"
    outcome = deltalm(*arguments)
    assert outcome.code == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    assert found["verdict"] in (PASS, WARN) and found["exit_code"] == 0
    (collectives,) = [one for one in found["findings"] if one["check"] == "collectives"]
    assert collectives["hosts"] == ["127.0.0.2", "127.0.0.3"] and "which of two hosts" in collectives["what"]
    assert not list(tmp_path.glob(".check-*"))


def test_the_probe_tells_what_the_checks_read(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / probe.LOCKED).touch()
    asked = preflight._inputs_of(load_recipe(recipe))
    request = {
        "wait_s": 5,
        "num_hosts": 1,
        "port": 0,
        "files": {"the recipe": str(recipe)},
        "inputs": asked,
        "devices": [],
    }
    (tmp_path / probe.REQUEST).write_text(json.dumps(request))
    probe.main(tmp_path, 0)
    *_, last = capsys.readouterr().out.splitlines()
    Facts.model_validate(json.loads(last)[probe.TOLD] | {"nvml": {"error": "not asked"}})
