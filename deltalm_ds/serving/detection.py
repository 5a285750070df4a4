"""Which language a text is in, by py3langid; its model is loaded when it is first asked."""

import threading
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from deltalm_ds.languages import find_language

MAX_CHARACTERS = 2_000  # enough to tell, whatever the length of the text
_lock = threading.Lock()


def detect(text: str, known: tuple[str, ...]) -> list[tuple[str, float]]:
    """Languages with their probabilities, most probable first: those of more than a hundredth.

    Where a text has no letters, all are alike, and none is named.

    Args:
        text: of any length.
        known: the codes of those that can be meant (short English texts look like Nigerian Pidgin); if there are none,
            all of py3langid's can.
    """
    with _lock:  # two threads would load it twice
        ranked = _identifier().rank(text[:MAX_CHARACTERS])
        codes = _codes(known)
    return [(codes[label], share) for label, share in ranked if label in codes and share > 0.01]


@lru_cache(maxsize=64)  # a server has few models, but may load others
def _codes(known: tuple[str, ...]) -> Mapping[str, str]:
    """Our codes of the languages that py3langid tells apart; its own where one could be several of the known."""
    labels: list[str] = _identifier().labels
    if not known:
        return {label: label for label in labels}
    found = {label: find_language(label, known) for label in labels}
    return {label: codes[0] if len(codes) == 1 else label for label, codes in found.items() if codes}


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
