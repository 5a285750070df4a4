"""What languages are called."""

from functools import cache

from deltalm_ds.languages import is_code, read_code


@cache
def english_name(code: str) -> str:
    """The English name of a language, with the script and region that the code names; the code where it has none."""
    from babel import Locale

    if not is_code(code):
        return code
    meaning, english = read_code(code), Locale("en")
    script = english.scripts.get(meaning.script or "") if (meaning.script or "?") in code else None
    details = [part for part in (script, english.territories.get(meaning.region or "")) if part]
    name = english.languages.get(meaning.language, code)
    return f"{name} ({', '.join(details)})" if details else name
