"""Every key of the recipe's schema, with what a user needs to know about it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.recipe.one_of import OneOf
from deltalm_ds.recipe.places import leaves, one_of, section_class
from deltalm_ds.recipe.schema import Recipe

REQUIRED = "required"
LIST = "list of sections"
_NAMES = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@dataclass(frozen=True)
class Key:
    """A key or a section.

    Attributes:
        path: as an override names it, with N for the number of an item in a list: `data.train.N.weight`.
        kinds: the kinds of the section around it that have it, where not all have.
        type: what a value is, in words.
        default: in YAML; `required` where there is none, empty where leaving it out means something the text tells.
        description: a sentence or two.
        is_section: whether there are keys below it.
        choices: of a section with kinds, each kind and what it is.
    """

    path: str
    kinds: tuple[str, ...]
    type: str
    default: str
    description: str
    is_section: bool = False
    choices: tuple[tuple[str, str], ...] = ()


def recipe_keys() -> list[Key]:
    """All keys, a section before what is in it, in the order of the schema."""
    return list(_keys(Recipe, ""))


def find_key(name: str) -> Key:
    """The key or section that a user calls `name`: a path, with or without the numbers of items in lists.

    Raises:
        InputError: there is none; the nearest is named.
    """
    keys = {_without_numbers(key.path): key for key in reversed(recipe_keys())}  # of several kinds' the first
    wanted = _without_numbers(name)
    if wanted not in keys:
        last = wanted.split(".")[-1]
        alike = [path for path in keys if path.split(".")[-1] == last] or [nearest(wanted, keys) or ""]
        raise InputError(f"A recipe has no key {name!r}; the nearest is {keys[alike[-1]].path!r}.")
    return keys[wanted]


def keys_below(section: Key) -> list[Key]:
    """The keys directly in a section."""
    prefix = f"{section.path}.N." if section.type == LIST else f"{section.path}."
    return [key for key in recipe_keys() if key.path.startswith(prefix) and "." not in key.path.removeprefix(prefix)]


def _without_numbers(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != "N" and not part.isdecimal())


def _keys(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path, choice, inner = f"{prefix}{name}", one_of(field), section_class(field, None)
        description = field.description or ""
        if choice is not None:
            choices = tuple((kind, inspect.getdoc(one) or "") for kind, one in choice.table.items())
            yield Key(path, (), "section or kind", _default(field), description, True, choices)
            yield from _keys_of_kinds(choice, path)
        elif inner is not None:
            is_list = get_origin(field.annotation) is tuple
            yield Key(path, (), LIST if is_list else "section", _default(field), description, True)
            yield from _keys(inner, f"{path}.N." if is_list else f"{path}.")
        else:
            yield Key(path, (), _type(field.annotation, field.metadata), _default(field), description)


def _keys_of_kinds(choice: OneOf, path: str) -> Iterator[Key]:
    """The keys of all kinds; those that several kinds have alike, once."""
    yield Key(
        f"{path}.kind", (), " or ".join(choice.table), choice.default, "Its name alone may stand for the section."
    )
    kinds_of_key: dict[Key, tuple[str, ...]] = {}
    for kind, kind_class in choice.table.items():
        for key in _keys(kind_class, f"{path}."):
            if key.path != f"{path}.kind":
                kinds_of_key[key] = (*kinds_of_key.get(key, ()), kind)
    for key, kinds in kinds_of_key.items():
        yield replace(key, kinds=() if len(kinds) == len(choice.table) else kinds)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return getattr(value, "kind", "")
    if value is None or value in ((), {}):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)


def _type(annotation: Any, bounds: list[Any]) -> str:
    """A type in words: `whole number > 0`, `highest or high or medium`, `list of 2: number ≥ 0, < 1`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [mark for one in arguments[1:] for mark in getattr(one, "metadata", [one])])
    if NoneType in arguments:
        return _type(next(argument for argument in arguments if argument is not NoneType), bounds)
    if origin is tuple:
        length = "" if Ellipsis in arguments else f" {len(arguments)}"
        return f"list of{length}: {_type(arguments[0], [])}"
    if origin is dict:
        return "mapping of text"
    if arguments:  # a Literal
        return " or ".join(map(str, leaves(annotation)))
    limits = [
        f"{sign} {_number(getattr(mark, name))}"
        for mark in bounds
        for name, sign in _SIGNS.items()
        if hasattr(mark, name)
    ]
    return " ".join([_NAMES[annotation], ", ".join(limits)]).strip()


def _number(value: float) -> str:
    return "2^63" if value == 2**63 else str(value)
