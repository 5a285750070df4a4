"""A place in the recipe for one kind of a table, such as the schedules: `kind: …` and the options of that kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from deltalm_ds.errors import nearest


@dataclass(frozen=True)
class OneOf:
    """Marks a field, `Annotated[Schedule, OneOf(SCHEDULES, default="inverse_sqrt")]`, whose kinds are those of a table.

    A recipe gives a mapping with `kind` and the options of that kind, or the kind's name alone.

    Attributes:
        table: kind -> its class, which has a field `kind`.
        default: the kind of a mapping that names none.
    """

    table: Mapping[str, type[BaseModel]]
    default: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def class_of(self, value: Any) -> type[BaseModel] | None:
        """The class that a value of a recipe is to be read with; None where it names no kind."""
        kind = value.get("kind", self.default) if isinstance(value, dict) else value
        return self.table.get(kind) if isinstance(kind, str) else None

    def _read(self, value: Any) -> BaseModel:
        if type(value) in self.table.values():
            return value
        if not isinstance(value, dict | str):
            form = "must be a mapping with kind and options, or the name of a kind: {kinds}"
            raise PydanticCustomError("no_kind", form, {"kinds": ", ".join(self.table)})
        kind_class = self.class_of(value)
        if kind_class is None:
            kind = value["kind"] if isinstance(value, dict) else value
            raise PydanticCustomError("unknown_kind", "{message}", {"message": self._no_such_kind(kind)})
        return kind_class.model_validate(value if isinstance(value, dict) else {})

    def _no_such_kind(self, kind: Any) -> str:
        kinds = ", ".join(self.table)
        return f"there is no kind {kind!r}; the kinds are {kinds}; the nearest is {nearest(kind, self.table)!r}"
