"""Reading and writing recipes: one YAML file, changes from the command line, and every fault in a sentence."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.schema import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"  # that come with the package


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides (values in YAML).

    Raises:
        InputError: one sentence per fault, all faults of the file at once.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is not valid YAML: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"The recipe {path} must be a mapping of sections, not {type(content).__name__}.")
    for override in overrides:
        _apply_override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {_sentence(fault)}" for fault in error.errors())
        raise InputError(f"The recipe {path} has {error.error_count()} fault(s):\n{faults}") from None


def recipe_path(name: str) -> Path:
    """The file of a recipe that comes with the package."""
    return RECIPES / f"{name}.yaml"


def save_recipe(recipe: Recipe, file: Any) -> None:
    """Write a resolved recipe as YAML to an open file."""
    yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), file, sort_keys=False, allow_unicode=True)


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Set one value; sections that the recipe leaves out are made, items of lists must exist."""
    name, separator, value = override.partition("=")
    if not (separator and name):
        raise InputError(f"The override {override!r} must have the form section.key=value.")
    target: Any = content
    *sections, last = name.split(".")
    try:
        for section in sections:
            key = _key_in(target, section)
            if isinstance(target, dict) and target.get(key) is None:
                target[key] = {}
            target = target[key]
        target[_key_in(target, last)] = yaml.safe_load(value)
    except LookupError as error:
        raise InputError(f"The override {override!r} names no place in the recipe: {error.args[0]}.") from None
    except yaml.YAMLError:
        raise InputError(f"The value of the override {override!r} is not valid YAML.") from None


def _key_in(target: Any, part: str) -> str | int:
    """The key or index that a part of an override's name means in a section or list; LookupError if none."""
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise LookupError(f"{part!r} would be inside the value {target!r}")
    if not (part.isdecimal() and int(part) < len(target)):
        raise LookupError(f"the list has items 0 to {len(target) - 1}, and no {part!r}")
    return int(part)


def _sentence(fault: ErrorDetails) -> str:
    """One fault of pydantic in our words, with the nearest right key for an unknown one."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][:-1])
        nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.0)
        return f"{where}: there is no such key; the nearest is {nearest[0]!r}" if nearest else f"{where}: no such key"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {fault['input']!r})" if where else message


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that a section of the recipe knows."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        section = next((a for a in _flatten(section) if isinstance(a, type) and issubclass(a, BaseModel)), section)
    return list(section.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    return [annotation] if not arguments else [leaf for argument in arguments for leaf in _flatten(argument)]
