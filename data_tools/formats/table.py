"""The formats of raw text, and which of them a file's name tells. A new format is a file of this folder and a row."""

from pathlib import Path

from deltalm_ds.data_tools.formats import csv, json_array, jsonl, parquet, text, tsv
from deltalm_ds.data_tools.formats.input_format import InputFormat
from deltalm_ds.errors import InputError
from deltalm_ds.lines import text_name

FORMATS = {
    "text": InputFormat(
        "lines of text, a record each",
        (".txt",),
        text.read,
        divisible=True,
        has_fields=False,
        read_documents=text.read_documents,
    ),
    "tsv": InputFormat(
        "columns between tabs, nothing quoted",
        (".tsv", ".tab"),
        tsv.read,
        divisible=True,
        fields={},
        may_have_header=True,
    ),
    "csv": InputFormat(
        "columns between commas, in quotes where need be", (".csv",), csv.read, fields={}, may_have_header=True
    ),
    "jsonl": InputFormat("an object a line", (".jsonl", ".ndjson", ".jsonlines"), jsonl.read, divisible=True),
    "json-array": InputFormat("an array of objects", (".json",), json_array.read),
    "parquet": InputFormat("rows with columns of text", (".parquet", ".pq"), parquet.read),
}

# Ends of names of files that are no lines of text. Others that are not known are those of text, as a rule languages':
# `.en`, `.pt`, `.br`; so none of these may be a code that is in use.
NO_TEXT_SUFFIXES = {
    "a compressed file or an archive": ".7z .lz4 .lzma .lzo .rar .tar .tbz2 .tgz .txz .z .zstd",
    "XML or HTML": ".htm .html .mxliff .sdlxliff .sgm .sgml .tbx .tmx .xhtml .xlf .xliff .xml",
    "structured text": ".toml .yaml .yml",
    "a document or a table of an office program": ".doc .docx .ods .odt .pdf .rtf .xls .xlsx",
    "a data file of a program": ".arrow .avro .db .feather .h5 .hdf5 .npy .npz .orc .pickle .pkl .sqlite .tfrecord",
}


def format_name(path: Path) -> str:
    """The name of the format that a file's name tells: lines of text where its end is not known.

    Raises:
        InputError: the name is that of a file that is no lines of text, or that of an archive that cannot be read.
    """
    suffix = Path(text_name(path)).suffix.lower()
    for name, input_format in FORMATS.items():
        if suffix in input_format.suffixes:
            return name
    for what, suffixes in NO_TEXT_SUFFIXES.items():
        if suffix in suffixes.split():
            raise InputError(
                f"{path} is {what} by its name ({suffix}), which is not read: convert it (see `deltalm data convert` "
                f"for published corpora), or say what is in it with --{', --'.join(FORMATS)}."
            )
    return "text"
