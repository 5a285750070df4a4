"""How much of a text is in certain scripts."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np


def script_shares(texts: Sequence[str], scripts: Sequence[str]) -> np.ndarray:
    """[texts] float64: of each text's letters the share that is in `scripts`, 1 where there are no letters.

    A script is the first word of its letters' Unicode names, as in `languages.scripts_of`.
    """
    script_of_code, script_names = _letters()
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4")
    text_of_code = np.repeat(np.arange(len(texts)), np.fromiter(map(len, texts), np.int64, len(texts)))
    found = script_of_code[codes]
    wanted = np.isin(script_names, scripts)[found]
    num_letters = np.bincount(text_of_code[found > 0], minlength=len(texts))
    num_wanted = np.bincount(text_of_code[wanted], minlength=len(texts))
    return np.where(num_letters > 0, num_wanted / np.maximum(num_letters, 1), 1.0)


@cache
def _letters() -> tuple[np.ndarray, np.ndarray]:
    """[code points] uint16: the number of a letter's script, 0 for what is no letter; and the scripts' names."""
    number_of_script = {"": 0}
    script_of_code = np.zeros(0x110000, np.uint16)
    for code in range(len(script_of_code)):
        character = chr(code)
        if unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo"):
            script = unicodedata.name(character, "UNKNOWN").replace("-", " ").split()[0]
            script_of_code[code] = number_of_script.setdefault(script, len(number_of_script))
    return script_of_code, np.array(list(number_of_script))
