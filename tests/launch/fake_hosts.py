"""A program named `ssh` whose hosts are all this machine: each command gets its host's name and no environment."""

import os
import shutil
import sys
from pathlib import Path

import pytest

# The beginning of a program that is called as ssh is: drops the options and has the host; left is the command.
SSH = """#!/bin/sh
while true; do
  case $1 in
    -[bcDEeFIiJLlmOopQRSWw]) shift 2;;
    -*) shift;;
    *) break;;
  esac
done
host=$1; shift
"""
# A file bin/NAME is a host's own behaviour: it gets the command.
RUN_HERE = """\
if [ -x "{bin}/$host" ]; then exec "{bin}/$host" "$@"; fi
exec {env} -i HOME="{home}" PATH=/usr/local/bin:/usr/bin:/bin HOSTNAME="$host" sh -c "$*"
"""


def put_on_path(monkeypatch: pytest.MonkeyPatch, directory: Path) -> Path:
    """Make the fake ssh the first on PATH; returns the folder for hosts' own behaviours."""
    folder = directory / "ssh_bin"
    folder.mkdir()
    text = SSH + RUN_HERE.format(bin=folder, env=shutil.which("env"), home=directory)
    write_program(folder / "ssh", text)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def write_program(path: Path, text: str) -> None:
    """An executable script."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def refuse(folder: Path, name: str, said: str, code: int = 255) -> None:
    """Let a host's ssh fail with a message on stderr."""
    write_program(folder / name, f"#!{sys.executable}\nimport sys\nsys.stderr.write({said!r})\nsys.exit({code})\n")
