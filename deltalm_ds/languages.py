"""Language codes: their grammar, what they mean whichever way they are spelled, and how the language is written.

A code is one of BCP 47 (RFC 5646): a language of two or three small letters, then as far as needed a script (`Hans`), a
region (`BR`, `419`) and variants (`valencia`). "_" may stand for "-", as in FLORES (`zho_Hans`) and locales (`zh_CN`).
The case is part of the grammar, so that codes can be told apart in the name of a pair: two or three small letters
always begin a language. `zh-Hans-en` is zh-Hans with en; `pt-br` is Portuguese with Breton, and only `pt-BR` one
language. What codes mean is looked up in Unicode's CLDR, which Babel brings along.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from deltalm_ds.errors import InputError

FORMS = "write a language as in de, pt-BR or zh_Hans"
_CODE = re.compile(
    r"(?P<language>[a-z]{2,3})"
    r"([-_](?P<script>[A-Z][a-z]{3}))?"
    r"([-_](?P<region>[A-Z]{2}|[0-9]{3}))?"
    r"(?P<variants>([-_]([0-9][a-z0-9]{3}|(?=[a-z]*[0-9])[a-z0-9]{5,8}|valencia|tarask|polyton))*)"
)  # other variants of letters alone are rare, and any word could be one: `en-news`
_NEXT_CODE = re.compile(r"-(?=[a-z]{2,3}(?:[-_]|$))")
_NO_REGIONS = ("XX", "ZZ")  # as in mBART's en_XX

# What CLDR does not count as the same language: members of macrolanguages that stand for them in FLORES, and `no`.
_MACRO_LANGUAGES = {"pbt": "ps", "quy": "qu", "fuv": "ff", "no": "nb"}
# Languages that CLDR does not know, and further scripts of those that it gives one script only.
_FURTHER_SCRIPTS = {
    "ber": ("Tfng",), "crh": ("Latn",), "eml": ("Latn",), "ks": ("Deva",), "ku": ("Arab",), "nah": ("Latn",),
    "sd": ("Deva",), "sr": ("Cyrl", "Latn"), "tk": ("Cyrl",), "uz": ("Cyrl",),
}  # fmt: skip

LETTERS_OF_SCRIPT = {
    "Latn": ("LATIN",), "Cyrl": ("CYRILLIC",), "Arab": ("ARABIC",), "Hebr": ("HEBREW",), "Grek": ("GREEK",),
    "Armn": ("ARMENIAN",), "Geor": ("GEORGIAN",), "Ethi": ("ETHIOPIC",), "Deva": ("DEVANAGARI",),
    "Beng": ("BENGALI",), "Gujr": ("GUJARATI",), "Guru": ("GURMUKHI",), "Orya": ("ORIYA",), "Taml": ("TAMIL",),
    "Telu": ("TELUGU",), "Knda": ("KANNADA",), "Mlym": ("MALAYALAM",), "Sinh": ("SINHALA",), "Thai": ("THAI",),
    "Laoo": ("LAO",), "Mymr": ("MYANMAR",), "Khmr": ("KHMER",), "Tibt": ("TIBETAN",), "Thaa": ("THAANA",),
    "Hans": ("CJK", "BOPOMOFO"), "Hant": ("CJK", "BOPOMOFO"), "Hani": ("CJK",),
    "Jpan": ("CJK", "HIRAGANA", "KATAKANA"), "Kore": ("HANGUL", "CJK"),
    "Tfng": ("TIFINAGH",), "Cher": ("CHEROKEE",), "Olck": ("OL",), "Mong": ("MONGOLIAN",),
    "Mtei": ("MEETEI",), "Nkoo": ("NKO",), "Syrc": ("SYRIAC",), "Java": ("JAVANESE",), "Bali": ("BALINESE",),
    "Lana": ("TAI",), "Talu": ("NEW",), "Yiii": ("YI",),
}  # fmt: skip
"""The scripts (ISO 15924) that we know the letters of, by the first word of the letters' Unicode names."""

WORD_TOKENIZER = "13a"
TOKENIZER_OF_SCRIPT = {
    "Hans": "zh", "Hant": "zh", "Hani": "zh", "Jpan": "ja-mecab", "Kore": "ko-mecab",
    "Thai": "char", "Laoo": "char", "Khmr": "char", "Mymr": "char", "Tibt": "char",
    "Java": "char", "Bali": "char", "Lana": "char", "Talu": "char", "Yiii": "char",
}  # fmt: skip
"""sacreBLEU's tokenizer for scripts whose words no spaces divide (or, Korean, not only): WORD_TOKENIZER sees a sentence
as one word. Where sacreBLEU cannot find the words, characters are compared; its flores200 needs a download."""

_UNSPACED = frozenset(
    word for script, kind in TOKENIZER_OF_SCRIPT.items() if script != "Kore" for word in LETTERS_OF_SCRIPT[script]
)  # the first words of letters' Unicode names


@dataclass(frozen=True)
class Language:
    """What a code means: `cmn`, `zho_Hans` and `zh` are all the language zh in the script Hans.

    Attributes:
        language: by the shortest code there is, ISO 639-1's as a rule.
        script: by ISO 15924; where the code names none, the usual one of the language there; None if CLDR has none.
        region, variants: only what the code names.
    """

    language: str
    script: str | None
    region: str | None = None
    variants: tuple[str, ...] = ()

    def agrees_with(self, other: "Language") -> bool:
        """Whether both can be the same: a region or variant that only one of them names does not divide them."""
        same_region = self.region == other.region or None in (self.region, other.region)
        same_variants = self.variants == other.variants or () in (self.variants, other.variants)
        return (self.language, self.script) == (other.language, other.script) and same_region and same_variants


def is_code(text: str) -> bool:
    """Whether this is a language code by the grammar; that there is such a language is not asked."""
    return _CODE.fullmatch(text) is not None


def check_code(text: str) -> str:
    """`text` itself; InputError, with what to write, where it is no language code."""
    if is_code(text):
        return text
    several = re.split("[^A-Za-z0-9_-]+", text)
    hint = "".join(f"; perhaps {reading}" for reading in _readings(text) if is_code(reading))
    if all(map(is_code, several)):
        hint = f", several with commas between: {','.join(several)}"
    raise InputError(f"{text!r} is not a language code: {FORMS}{hint}.")


def split_codes(name: str) -> tuple[str, ...]:
    """The codes that "-" joins to a name: `zh_CN` -> (zh_CN,), `en-pt-BR` -> (en, pt-BR).

    Raises:
        InputError: a part is no language code.
    """
    codes = tuple(_NEXT_CODE.split(name))
    if not all(map(is_code, codes)):
        readings = " or ".join(_readings(name))
        hint = f"; perhaps {readings}" if readings else ""
        raise InputError(f"{name!r} is not made of language codes: {FORMS}, a pair as in en-de or en-pt-BR{hint}.")
    return codes


def _readings(text: str) -> list[str]:
    """What `text` may mean: a language in the usual case, or languages in small letters."""
    first, *others = re.split("[-_]", text.lower())
    usual = (part.title() if len(part) == 4 else part.upper() if len(part) == 2 else part for part in others)
    readings = dict.fromkeys(["-".join([first, *usual]), "-".join([first, *others])])
    return [reading for reading in readings if all(map(is_code, _NEXT_CODE.split(reading)))]


def split_pair(name: str) -> tuple[str, str]:
    """The two languages of a direction or pair: `zh-Hans-en` -> (zh-Hans, en).

    Raises:
        InputError: it is not made of two language codes.
    """
    codes = split_codes(name)
    if len(codes) != 2:
        number = "one language" if len(codes) == 1 else f"{len(codes)} languages"
        raise InputError(f"{name!r} names {number}, not two: write a pair as in en-de or en-pt-BR.")
    return codes[0], codes[1]


@lru_cache(maxsize=1 << 12)  # a server's clients make up as many as they like
def read_code(code: str) -> Language:
    """What a code means, as far as CLDR knows it; InputError if it is no code."""
    from babel.core import get_global

    match = _CODE.fullmatch(check_code(code))
    assert match is not None
    language, script, region = match["language"], match["script"], match["region"]
    language, *named_by_alias = get_global("language_aliases").get(language, language).split("_")  # `hbs` is sr_Latn
    language = _MACRO_LANGUAGES.get(language, language)
    script = script or next((part for part in named_by_alias if len(part) == 4), None)
    if script is None:
        likely = get_global("likely_subtags")
        full = likely.get(f"{language}_{region}") or likely.get(language)  # such as zh_Hant_TW
        script = full.split("_")[1] if full else next(iter(_FURTHER_SCRIPTS.get(language, ())), None)
    variants = tuple(re.split("[-_]", match["variants"])[1:])
    script = "Kore" if script == "Hang" else script  # FLORES' kor_Hang; Hangul alone is how Korean is written now
    return Language(language, script, None if region in _NO_REGIONS else region, variants)


def find_language(code: str, known: Sequence[str]) -> list[str]:
    """Those of the `known` codes that can mean the language of `code`: one is an answer, several are not.

    It is the code itself, or else the same by another spelling, or else all that agree with it. A bare language (`zh`)
    does not mean one of two scripts that are known of it (`zh-Hans`, `zh-Hant`), though one of them is the usual one.

    Raises:
        InputError: `code` is none of the `known`, and no language code.
    """
    if code in known:
        return [code]
    wanted = read_code(code)
    of_language = {
        other: meaning
        for other in known
        if is_code(other) and (meaning := read_code(other)).language == wanted.language
    }
    same = [other for other, meaning in of_language.items() if meaning == wanted]
    if any(_is_bare(other) for other in same) or (same and not _is_bare(code)):
        return same
    agreeing = [other for other, meaning in of_language.items() if meaning.agrees_with(wanted)]
    return list(of_language) if agreeing and _is_bare(code) else agreeing


def _is_bare(code: str) -> bool:
    """Whether a code names a language only."""
    return code.isalpha()


def names_of(code: str, written_in: Iterable[str]) -> list[str]:
    """What a language is called: by its code and the language's other codes, in English, and in some languages.

    `de` -> de, deu, ger, German, Deutsch where `written_in` are en and de; the names of the code's script, too.

    Raises:
        InputError: one of the codes is no language code.
    """
    from babel import Locale
    from babel.core import get_global
    from babel.localedata import exists

    meaning = read_code(code)
    names = [code, meaning.language, meaning.script or ""]
    names += [alias for alias, language in get_global("language_aliases").items() if language == meaning.language]
    for language in dict.fromkeys(["en", *(read_code(other).language for other in written_in)]):
        if exists(language):
            names.append(Locale(language).languages.get(meaning.language, ""))
    return [name for name in names if name]


def scripts_of(code: str) -> tuple[str, ...]:
    """The scripts that text in a language may have, as the first words of its letters' Unicode names.

    That is the script that the code names (`sr-Latn`), else all those that the language (`sr`) is written in.

    Raises:
        InputError: it is no language code, or its script is not known.
    """
    meaning, match = read_code(code), _CODE.fullmatch(code)
    assert match is not None
    further = () if match["script"] else _FURTHER_SCRIPTS.get(meaning.language, ())
    words = [word for script in (meaning.script, *further) for word in LETTERS_OF_SCRIPT.get(script or "", ())]
    if not words:
        raise InputError(f"The script of {code!r} is not known: add it to deltalm_ds/languages.py, or do not check it.")
    return tuple(dict.fromkeys(words))


def main_script(texts: Iterable[str]) -> str | None:
    """The script (a key of `LETTERS_OF_SCRIPT`) of more than half of the letters; None if there is no such.

    Chinese characters are Japanese where there is a kana for every four of them, Chinese (`Hans`) otherwise.
    """
    counts: Counter[str] = Counter()
    for character, count in Counter("".join(texts)).items():
        if unicodedata.category(character).startswith("L"):
            counts[unicodedata.name(character, "UNKNOWN").replace("-", " ").split()[0]] += count
    num_kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if 4 * num_kana > counts["CJK"]:
        counts["HIRAGANA"] += counts.pop("CJK", 0)
    for script, words in LETTERS_OF_SCRIPT.items():
        if 2 * sum(counts[word] for word in words) > counts.total():
            return script
    return None


@lru_cache(maxsize=1 << 12)
def is_word_character(character: str) -> bool:
    """Whether words are made of it: letters, marks, digits and other numbers of any script."""
    return unicodedata.category(character)[0] in "LMN"


@lru_cache(maxsize=1 << 12)
def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script whose words no spaces divide, such as Han and Thai."""
    return re.split("[- ]", unicodedata.name(character, ""))[0] in _UNSPACED


def is_within_word(before: str, after: str) -> bool:
    """Whether two neighbouring characters belong to one word; of scripts without spaces, only a letter and its marks.

    Either may be empty, where the text ends.
    """
    if not before or not after or not (is_word_character(before) and is_word_character(after)):
        return False
    return unicodedata.category(after)[0] == "M" or not (is_unspaced(before) or is_unspaced(after))
