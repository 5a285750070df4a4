"""Parquet: rows with named columns of text; `translation.en` is a field of a column of structs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.errors import InputError
from deltalm_ds.lines import STDIN

if TYPE_CHECKING:  # else imported where it is used: help texts know the formats, and Arrow takes long to load
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_PER_BLOCK = 1024


def read(wanted: Wanted) -> Iterator[Columns]:
    """Yield the texts of the wanted columns."""
    assert wanted.fields is not None
    with _opened(wanted.path) as file:
        known = list(_text_fields(file.schema_arrow))
        for field in wanted.fields:
            column = field if field in file.schema_arrow.names else field.partition(".")[0]
            if file.schema_arrow.names.count(column) > 1:
                raise InputError(f"{wanted.path} has several columns {column!r}: rename all but one.")
            if field not in known:
                raise _unknown(wanted, field, known)
        for batch in file.iter_batches(ROWS_PER_BLOCK, columns=list(wanted.fields)):
            yield tuple(_texts(batch, field) for field in wanted.fields)


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the position and the content of each row, as an object."""
    with _opened(path) as file:
        rows = (row for batch in file.iter_batches(ROWS_PER_BLOCK) for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield f"{path}, record {number}", row


@contextmanager
def _opened(path: Path) -> "Iterator[pq.ParquetFile]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path == STDIN:
        raise InputError("Parquet cannot be read from standard input: name a file.")
    try:
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, not a Parquet file, or not UTF-8: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _text_fields(columns: "pa.Schema | pa.StructType", prefix: str = "") -> Iterator[str]:
    """The names of all columns with text, and of the fields of structs that have any."""
    import pyarrow.types as types

    for column in columns:
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        if types.is_struct(kind):
            yield from _text_fields(kind, f"{prefix}{column.name}.")
        elif types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
            yield f"{prefix}{column.name}"


def _unknown(wanted: Wanted, field: str, known: list[str]) -> InputError:
    hint = ""
    if len(known) >= wanted.num_sides:
        hint = f"; to read others name them, as in {wanted.path.name}:{','.join(known[: wanted.num_sides])}"
    return InputError(f"{wanted.path} has no column of text {field!r}, only {', '.join(known) or 'none'}{hint}.")


def _texts(batch: "pa.RecordBatch", field: str) -> list[str | None]:
    import pyarrow.compute as pc

    if field in batch.schema.names:
        return batch.column(field).to_pylist()
    name, _, rest = field.partition(".")
    column = batch.column(name)
    for part in rest.split("."):
        column = pc.struct_field(column, [part])
    return column.to_pylist()
