"""Where a recipe's schema keeps what: from a field to the class of its value."""

from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deltalm_ds.recipe.one_of import OneOf


def one_of(field: FieldInfo) -> OneOf | None:
    """The table that a field's kinds come from, if it has kinds."""
    return next((mark for mark in field.metadata if isinstance(mark, OneOf)), None)


def section_class(field: FieldInfo, value: Any) -> type[BaseModel] | None:
    """The class that a field's value in a recipe, or each item of it, is read with; None where it is no section."""
    choice = one_of(field)
    if choice is not None:
        return choice.class_of(value)
    classes = (leaf for leaf in leaves(field.annotation) if isinstance(leaf, type) and issubclass(leaf, BaseModel))
    return next(classes, None)


def leaves(annotation: Any) -> list[Any]:
    """The types that an annotation is made of: of `tuple[int, ...] | None` int, Ellipsis and NoneType."""
    arguments = get_args(annotation)
    return [leaf for argument in arguments for leaf in leaves(argument)] if arguments else [annotation]
