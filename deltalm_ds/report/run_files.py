"""The files of a run directory that pages show, whichever version wrote them."""

from pathlib import Path
from typing import Any

import yaml

from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.report.records import Record
from deltalm_ds.runs.metrics import read_metrics


def read_records(run: Path) -> list[Record]:
    """The records of a run; InputError if it has none."""
    records = read_metrics(run)
    if not records:
        raise InputError(f"{run} has no metrics.jsonl with records: give the directory of a run that has begun.")
    return records


def read_recipe(run: Path) -> Record:
    """What recipe.yaml says; empty without one."""
    path = run / "recipe.yaml"
    if not path.exists():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or what looks like a date and is none
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path} is not a recipe: it has no keys.")
    return recipe


def read_if_there(path: Path) -> Any:
    """A JSON file; None without one."""
    return read_json(path) if path.exists() else None


def name_of(run: Path, recipe: Record) -> str:
    """What a run is called: by its recipe, or else by its directory."""
    return str(recipe.get("name", run.resolve().name))
