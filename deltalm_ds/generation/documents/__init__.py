"""The formats of documents, one file and one row each. The table itself imports none of them.

A new format is a module here with `read(text)`, or `read(data)` where it is no text, which returns a `Document`, and a
row of `FORMATS`.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.lines import STDIN, decoded, text_name

if TYPE_CHECKING:
    from deltalm_ds.generation.documents.passages import Document


@dataclass(frozen=True)
class DocumentFormat:
    """A format before its module is loaded.

    Attributes:
        title: its name for people.
        suffixes: of files' names.
        module: where its `read` is, with all the imports that it needs.
        is_text: whether `read` takes text in UTF-8; else bytes.
    """

    title: str
    suffixes: tuple[str, ...]
    module: str
    is_text: bool = True

    def read(self, data: bytes, path: Path = STDIN) -> "Document":
        """The document of these bytes. path: what errors name.

        Raises:
            InputError: it is not in this format, or a package is missing.
        """
        return import_module(self.module).read(decoded(data, path) if self.is_text else data)


FORMATS = {
    "text": DocumentFormat("plain text", (".txt", ".text", ""), f"{__name__}.text"),
    "markdown": DocumentFormat("Markdown", (".md", ".markdown"), f"{__name__}.markdown"),
    "html": DocumentFormat("HTML", (".html", ".htm", ".xhtml"), f"{__name__}.html"),
    "subtitles": DocumentFormat("SubRip and WebVTT", (".srt", ".vtt"), f"{__name__}.subtitles"),
    "docx": DocumentFormat("Word", (".docx",), f"{__name__}.docx", is_text=False),
}


def format_of(path: Path, name: str | None = None) -> DocumentFormat:
    """The format of that name or, without one, of the file's suffix; standard input is plain text.

    Raises:
        InputError: there is no such format, or none with this suffix.
    """
    if name is not None:
        if name not in FORMATS:
            raise InputError(
                f"There is no document format {name!r}: the nearest is {nearest(name, FORMATS)!r}; there are "
                f"{', '.join(FORMATS)}."
            )
        return FORMATS[name]
    suffix = "" if path == STDIN else Path(text_name(path)).suffix.lower()
    for entry in FORMATS.values():
        if suffix in entry.suffixes:
            return entry
    raise InputError(f"{path}: no document format has the suffix {suffix}: name one (--format): {', '.join(FORMATS)}.")
