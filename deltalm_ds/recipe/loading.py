"""Reading and writing recipes: one YAML file, changes from the command line, and every fault in a sentence."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.faults import sentence
from deltalm_ds.recipe.places import one_of, section_class
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.recipe.yaml_text import dump_yaml, parse_yaml

RECIPES = Path(__file__).parents[1] / "recipes"  # that come with the package


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides (values in YAML).

    Raises:
        InputError: one sentence per fault, all faults of the file at once.
    """
    content = _read(Path(path))
    names: set[str] = set()
    for override in overrides:
        name = override.partition("=")[0]
        if name in names:
            raise InputError(f"The override {name} is given twice: leave out one of them.")
        names.add(name)
        _apply_override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        faults = "\n".join(f"  {sentence(fault, content)}" for fault in error.errors())
        raise InputError(f"The recipe {path} has {error.error_count()} fault(s):\n{faults}") from None


def recipe_path(name: str) -> Path:
    """The file of a recipe that comes with the package."""
    return RECIPES / f"{name}.yaml"


def save_recipe(recipe: Recipe, file: IO[str]) -> None:
    """Write a resolved recipe as YAML to an open file."""
    dump_yaml(recipe.model_dump(mode="json", exclude_none=True), file)


def _read(path: Path) -> dict[str, Any]:
    """The content of a recipe's file: a mapping of sections, not yet checked."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InputError(f"The recipe {path} is not a text file in UTF-8: give a YAML file.") from None
    except ValueError as error:
        raise InputError(f"The recipe {path} is not valid YAML: {error}.") from None
    if content is None:
        raise InputError(f"The recipe {path} is empty: it must be a mapping of sections, as in recipes/.")
    if not isinstance(content, dict):
        raise InputError(f"The recipe {path} must be a mapping of sections, not {type(content).__name__}.")
    return content


def _apply_override(content: dict[str, Any], override: str) -> None:
    """Set one value; sections that the recipe leaves out are made, items of lists must exist."""
    name, separator, value = override.partition("=")
    if not (separator and name):
        raise InputError(f"The override {override!r} must have the form section.key=value.")
    target: Any = content
    section: type[BaseModel] | None = Recipe
    *sections, last = name.split(".")
    try:
        for part in sections:
            key = _key_in(target, part)
            if isinstance(target, dict):
                field = section.model_fields.get(part) if section is not None else None
                has_kinds = field is not None and one_of(field) is not None
                target[key] = _as_section(target.get(key), has_kinds)
                section = section_class(field, target[key]) if field is not None else None
            target = target[key]
        target[_key_in(target, last)] = parse_yaml(value)
    except LookupError as error:
        raise InputError(f"The override {override!r} names no place in the recipe: {error.args[0]}.") from None
    except ValueError as error:
        raise InputError(f"The value of the override {override!r} is not valid YAML: {error}.") from None


def _as_section(value: Any, has_kinds: bool) -> Any:
    """A value that an override goes into: a new section for none, and a kind's name in the form of a section."""
    if value is None:
        return {}
    return {"kind": value} if has_kinds and isinstance(value, str) else value


def _key_in(target: Any, part: str) -> str | int:
    """The key or index that a part of an override's name means in a section or list; LookupError if none."""
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise LookupError(f"{part!r} would be inside the value {target!r}")
    if not (part.isdecimal() and int(part) < len(target)):
        raise LookupError(f"the list has items 0 to {len(target) - 1}, and no {part!r}")
    return int(part)
