"""Which language a text is in, by py3langid; its model is loaded when it is first asked."""

import threading
from functools import cache
from typing import Any

MAX_CHARACTERS = 2_000  # enough to tell, whatever the length of the text
_lock = threading.Lock()


def detect(text: str) -> list[tuple[str, float]]:
    """Languages (ISO 639-1) with their probabilities, most probable first: those of more than a hundredth.

    Where a text has no letters, all are alike, and none is named.
    """
    with _lock:  # two threads would load it twice
        ranked = _identifier().rank(text[:MAX_CHARACTERS])
    return [(language, probability) for language, probability in ranked if probability > 0.01]


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
