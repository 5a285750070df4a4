"""What is wrong with a recipe, in sentences: where, what, and what was meant."""

from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from deltalm_ds.errors import nearest
from deltalm_ds.recipe.keys import recipe_keys
from deltalm_ds.recipe.one_of import OneOf
from deltalm_ds.recipe.places import one_of, section_class
from deltalm_ds.recipe.schema import Recipe


def sentence(fault: ErrorDetails, content: Any) -> str:
    """One fault that pydantic found in the content of a recipe, without a full stop."""
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: {_no_such_key(fault['loc'], content)}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message, given = fault["msg"].removeprefix("Value error, "), fault["input"]
    holds_sections = isinstance(given, dict | BaseModel) or (isinstance(given, list) and dict in map(type, given))
    is_plain = given is not None and not holds_sections
    return f"{where}: {message}{f' (got {given!r})' if is_plain else ''}"


def _no_such_key(location: tuple[int | str, ...], content: Any) -> str:
    name = str(location[-1])
    section_class, choice = _section_at(location[:-1], content)
    if choice is not None:
        having = [kind for kind, one in choice.table.items() if name in one.model_fields]
        if having:
            return f"there is no such key of this kind; it belongs to {' and '.join(having)}"
    elsewhere = [key.path for key in recipe_keys() if key.path.split(".")[-1] == name]
    if elsewhere and not any(name in nearby for nearby in section_class.model_fields):
        return f"there is no such key here; there is {elsewhere[0]}"
    return f"there is no such key; the nearest is {nearest(name, section_class.model_fields)!r}"


def _section_at(location: tuple[int | str, ...], content: Any) -> tuple[type[BaseModel], OneOf | None]:
    """The class that the section at a location is read with, and the table it is from where it has kinds."""
    section: type[BaseModel] | None = Recipe
    choice = None
    for part in location:
        content = content[part]
        if isinstance(part, str):
            assert section is not None
            field = section.model_fields[part]
            section, choice = section_class(field, content), one_of(field)
    assert section is not None  # pydantic found a key in it
    return section, choice
