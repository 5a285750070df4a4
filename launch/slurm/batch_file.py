"""`deltalm launch --slurm`: the batch script of a training, filled in for a run, and its submission."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file

TEMPLATE = Path(__file__).with_name("pretrain.sbatch")
_ACTIVATE = "# source /path/to/venv/bin/activate"


def batch_script(recipe: Path, run: Path, overrides: Sequence[str] = (), options: Sequence[str] = ()) -> str:
    """The text of a batch script for a training.

    Args:
        recipe: the recipe.
        run: the run directory.
        overrides: changes of the recipe.
        options: of sbatch, such as `--nodes=2`, in place of the script's own or beside them.

    Raises:
        InputError: an option is none of sbatch's form.
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    for option in options:
        text = _with_option(text, option)
    values = {"RECIPE": shlex.quote(str(recipe.absolute())), "RUN": shlex.quote(str(run.absolute()))}
    for name, value in values.items():
        text = _with_line(text, f"{name}=", f"{name}={value}")
    text = _with_line(text, "read -ra OVERRIDES ", f"OVERRIDES=({' '.join(map(shlex.quote, overrides))})")
    own_python = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    return text.replace(_ACTIVATE, own_python)


def _with_line(text: str, beginning: str, line: str) -> str:
    """With a line in place of the one that begins so."""
    return re.sub(rf"^{re.escape(beginning)}.*$", lambda _: line, text, flags=re.MULTILINE)


def _with_option(text: str, option: str) -> str:
    """With a line `#SBATCH` for an option, in place of the one that there is."""
    match = re.fullmatch(r"(--[a-z][a-z-]*)(=[^\n]+)?", option)
    if match is None:
        raise InputError(f"{option!r} is no option of sbatch in its long form, as in --nodes=2.")
    name = match[1].removeprefix("--").removeprefix("no-")
    line, own = f"#SBATCH {option}", re.compile(rf"^#SBATCH --(?:no-)?{name}(?:=.*)?$", re.MULTILINE)
    if own.search(text):
        return own.sub(lambda _: line, text)
    return text.replace("#SBATCH --job-name", f"{line}\n#SBATCH --job-name", 1)


def write_batch_file(path: Path, text: str) -> None:
    """Write a batch script; an existing one of another content is not overwritten.

    Raises:
        InputError: there is another file.
    """
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise InputError(f"{path} is there already, and another one: name a new file, or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text)


def submit(path: Path) -> str:
    """Submit a batch script; the number of the job.

    Raises:
        InputError: sbatch is not there, or refuses it.
    """
    try:
        result = subprocess.run(["sbatch", "--parsable", path], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"There is no sbatch on this host: submit {path} where SLURM's programs are.") from None
    if result.returncode:
        raise InputError(f"sbatch refused {path}: {result.stderr.strip()}")
    return result.stdout.strip().split(";")[0]
