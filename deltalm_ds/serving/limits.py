"""What a client may ask for, how much of it at once, and who may ask at all."""

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from deltalm_ds.errors import InputError
from deltalm_ds.lines import read_lines
from deltalm_ds.serving.errors import ApiError

MAX_TEXTS = 1_000  # of a request
MAX_BEAM = 16
MAX_NAME = 100  # characters of a language code or a model's name
BODY_BYTES = 12  # of a character at most, as %F0%9F%98%80 or 😀
BODY_S = 10.0  # that a client has to send a request, its head and its body each
READ_BYTES = 16_384  # of an answer that a client takes in that time, if there are so many; else it is cut off
AT_WORK = 64  # requests that are divided into sentences and wait for them: enough to fill any batch
RETRY_AFTER_S = 2


@dataclass(frozen=True)
class Limits:
    """Bounds that an operator chooses.

    Attributes:
        characters: of all texts of a request.
        waiting: requests that wait beside the `AT_WORK` that are worked on; more are refused.
        timeout_s: that a request takes, waiting included.
        beam: of a request that names none.
    """

    characters: int = 100_000
    waiting: int = 1_000
    timeout_s: float = 60.0
    beam: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= MAX_BEAM:
            raise InputError(f"The beam is {self.beam}; a server searches with 1 to {MAX_BEAM}.")
        if self.characters < 1 or self.waiting < 0 or self.timeout_s <= 0:
            raise InputError("Limits on characters, waiting requests and seconds must be above 0.")

    @property
    def body_bytes(self) -> int:
        """The longest body: that many characters, however they are escaped, and what is around them."""
        return BODY_BYTES * self.characters + 65_536

    def check_texts(self, texts: list[str]) -> None:
        """Refuse more than may be asked for at once."""
        num = sum(map(len, texts))
        if len(texts) > MAX_TEXTS:
            raise ApiError(413, f"There are {len(texts)} texts; a request may have {MAX_TEXTS}: send several.")
        if num > self.characters:
            raise ApiError(413, f"There are {num} characters; a request may have {self.characters}: divide the text.")
        if any("\0" in text for text in texts):
            raise ApiError(400, "The text has a NUL character, as no text has: leave it out.")

    def check_alignments(self, texts: list[str], num_texts: int) -> None:
        """Refuse to tell of more than this what it looks at."""
        num = sum(map(len, texts)) * num_texts
        if num > self.characters:
            raise ApiError(
                413,
                f"Alignments of {num_texts} hypotheses are as many characters as {num}; a request may have "
                f"{self.characters}: divide the text, or ask for fewer hypotheses.",
            )


class ApiKeys:
    """Keys from a file, one a line; without a file nobody needs one. Read again by `load`.

    Raises:
        InputError: the file cannot be read, or has no key.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._digests: list[bytes] = []
        self.load()

    def load(self) -> None:
        """Read the file."""
        if self._path is None:
            return
        lines = [line.strip() for line in read_lines(self._path)]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise InputError(f"{self._path} has no API key: write one a line.")
        self._digests = [_digest(key) for key in keys]

    @property
    def are_needed(self) -> bool:
        """Whether a request must have one."""
        return self._path is not None

    def check(self, request: Request, key: str | None = None) -> None:
        """Refuse a request that has no right key. key: one that came in its body."""
        if not self.are_needed:
            return
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if not key and scheme.lower() == "bearer":
            key = bearer.strip()
        if not key:
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "This server needs an API key: send it as Authorization: Bearer KEY.", headers)
        if not any(hmac.compare_digest(_digest(key), known) for known in self._digests):
            raise ApiError(403, "The API key is none of this server's.")


def _digest(key: str) -> bytes:
    """Of equal length, so that comparing takes as long for every key; lone surrogates may be in a key of a client."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
