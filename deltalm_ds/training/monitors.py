"""Monitors that a recipe asks for beside TensorBoard: those of DeepSpeed, which write elsewhere what a record holds."""

import csv
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.metrics import Numbers

PACKAGES = {"wandb": "wandb", "comet": "comet_ml"}  # that monitors need
CSV = "csv"  # of a run directory: a file for each number


def check_monitors(recipe: Recipe) -> None:
    """InputError where the package of a monitor is missing."""
    for name in recipe.training.monitors:
        package = PACKAGES.get(name)
        if package and find_spec(package) is None:
            raise InputError(
                f"training.monitors: {name} needs the package {package}, which is not installed: install it, or leave "
                "out this monitor."
            )


def open_monitors(recipe: Recipe, run: Path, step: int) -> list[Callable[[int, Numbers], None]]:
    """What `MetricsLog` is to give its numbers to, on rank 0.

    Args:
        recipe: names the monitors.
        run: the run directory.
        step: that the run goes on from; later rows of its CSV files are cut off.

    Raises:
        InputError: a monitor cannot be opened: no network or no account, say.
    """
    return [_Monitor(name, recipe, run, step) for name in recipe.training.monitors]


class _Monitor:
    """One of DeepSpeed's. What goes wrong while training is told once, and training goes on without it."""

    def __init__(self, name: str, recipe: Recipe, run: Path, step: int) -> None:
        from deepspeed.monitor.config import get_monitor_config  # slow to import: only where it is used
        from deepspeed.monitor.monitor import MonitorMaster

        self._name = name
        try:
            self._monitor = MonitorMaster(get_monitor_config(_config(name, recipe, run)))
        except Exception as error:  # whatever the service's own package raises
            raise InputError(
                f"training.monitors: {name} cannot be opened: {str(error).strip()}. Mend that, or leave it out."
            ) from error
        if name == "csv":
            self._monitor.csv_monitor.filenames = _cut_off(run / CSV, step)

    def __call__(self, step: int, numbers: Numbers) -> None:
        if self._monitor is None:
            return
        try:
            self._monitor.write_events([(name, value, step) for name, value in numbers])
        except Exception as error:
            print(f"The monitor {self._name} is given up at step {step}: {str(error).strip()}", file=sys.stderr)
            self._monitor = None


def _config(name: str, recipe: Recipe, run: Path) -> dict[str, Any]:
    """DeepSpeed's section of a monitor; accounts and projects are set by each service's own variables."""
    options: dict[str, dict[str, Any]] = {
        "csv": {"csv_monitor": {"enabled": True, "output_path": str(run), "job_name": CSV}},
        "wandb": {"wandb": {"enabled": True, "project": "deltalm_ds", "group": recipe.name}},
        "comet": {"comet": {"enabled": True, "experiment_name": recipe.name, "samples_log_interval": 1}},
    }
    return options[name]


def _cut_off(directory: Path, step: int) -> list[str]:
    """Cut rows of later steps off the CSV files; the names of those that have a header already."""
    names = []
    for path in sorted(directory.glob("*.csv")):
        with open(path, newline="") as file:
            header, *rows = csv.reader(file) or [[]]
        whole = [row for row in rows if len(row) == len(header) and row[0].isdigit()]  # a crash may have cut the last
        with atomic_file(path) as file:
            csv.writer(file).writerows([header, *(row for row in whole if int(row[0]) <= step)])
        names.append(path.stem)
    return names
