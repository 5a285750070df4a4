"""The page for people: one file, in which only its own script runs."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_TEXT = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _sources(element: str) -> str:
    """By their hashes, what stands in the elements of that name."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", _TEXT, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in hashes)


POLICY = (
    f"default-src 'none'; script-src {_sources('script')}; style-src {_sources('style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the page, and for all other answers, in which nothing is to run at all."""


async def page(request: Request) -> Response:
    """The page."""
    return HTMLResponse(_TEXT)
