"""Language codes: the grammar case by case, what spellings mean by CLDR, scripts, and the script of a text."""

import re

import pytest
from babel import Locale, UnknownLocaleError
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.languages import (
    LETTERS_OF_SCRIPT,
    TOKENIZER_OF_SCRIPT,
    check_code,
    find_language,
    is_code,
    main_script,
    read_code,
    scripts_of,
    split_codes,
    split_pair,
)

CODES = [
    "en", "de", "ceb", "yue", "pt-BR", "pt_BR", "en_XX", "es-419", "zh-Hans", "zho_Hans", "zh_Hant-TW", "sr-Latn",
    "ca-valencia", "de-1996", "cat_Latn_vale1252",
]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_codes_are_taken_as_they_are(code):
    assert check_code(code) == code
    assert split_codes(code) == (code,)


@given(st.lists(st.sampled_from(CODES), min_size=1, max_size=3))
def test_names_of_several_codes_come_apart_in_one_way(codes):
    assert split_codes("-".join(codes)) == tuple(codes)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("EN", "perhaps en."),
        ("pt-br", "perhaps pt-BR."),
        ("pt_br", "perhaps pt-BR."),
        ("ZH-hans", "perhaps zh-Hans."),
        ("en de", "with commas between: en,de."),
        ("en;pt-BR", "with commas between: en,pt-BR."),
        *(
            (text, "as in de, pt-BR or zh_Hans.")
            for text in ("", "a:b", "../x", "english", "en-corpus", "__en__", "en-", "de\n")
        ),
    ],
)
def test_what_is_no_code_is_refused_with_what_to_write(text, advice):
    assert not is_code(text)
    with pytest.raises(InputError, match=f"{re.escape(repr(text))} is not a language code.*{re.escape(advice)}$"):
        check_code(text)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("EN-DE", "perhaps en-DE or en-de."), ("en_de", "perhaps en-DE or en-de."), ("en-", "en-pt-BR.")],
)
def test_a_name_that_has_no_codes_is_refused(name, advice):
    with pytest.raises(InputError, match=f"{name!r} is not made of language codes.*{re.escape(advice)}$"):
        split_codes(name)


def test_a_pair_is_two():
    assert split_pair("zh-Hans-en") == ("zh-Hans", "en")
    assert split_pair("pt-br") == ("pt", "br")  # Portuguese and Breton; pt-BR is one language
    for name, number in (("pt-BR", "one language"), ("en-de-fr", "3 languages")):
        with pytest.raises(InputError, match=f"{name!r} names {number}, not two"):
            split_pair(name)


@pytest.mark.parametrize("spelling", ["zh", "cmn", "zho", "chi", "zh_CN", "zh-CN", "zh-Hans", "zho_Hans", "zh-SG"])
def test_spellings_of_chinese(spelling):
    meaning = read_code(spelling)
    assert (meaning.language, meaning.script) == ("zh", "Hans")
    assert meaning.agrees_with(read_code("zho_Hans"))
    assert not meaning.agrees_with(read_code("zh_TW"))


# Of each language ISO 639-1, 639-2's other code where there is one, and FLORES' code.
@pytest.mark.parametrize(
    "spellings",
    [
        "en eng eng_Latn en_XX", "de deu ger deu_Latn", "fr fra fre fra_Latn", "pt por por_Latn", "ar ara arb_Arab",
        "fa fas per pes_Arab", "et est ekk est_Latn", "lv lav lvs_Latn", "ms msa may zsm_Latn", "sw swa swh_Latn",
        "no nor nob_Latn nb", "sq sqi alb als_Latn", "ps pus pbt_Arab", "qu que quy_Latn", "mn mon khk_Cyrl",
        "ne nep npi_Deva", "or ori ory_Orya", "uz uzb uzn_Latn", "yi yid ydd_Hebr", "ja jpn jpn_Jpan ja_JP",
        "ko kor kor_Hang kor_Kore ko_KR", "my mya bur mya_Mymr", "bo bod tib bod_Tibt", "th tha tha_Thai",
        "he iw heb_Hebr",
    ],
)  # fmt: skip
def test_spellings_of_one_language_find_each_other(spellings):
    spellings = spellings.split()
    for known in spellings:
        for wanted in spellings:
            assert find_language(wanted, ["xx", known, "zh-TW"]) == [known]


def test_meanings_are_those_of_a_locale():
    """Against Babel's reading of a locale: the same short code, and the script that is usual there."""
    for code in ("zh_TW", "zh_HK", "pa_PK", "uz_AF", "sr_RS", "pt_BR", "az_IR", "ha_NG"):
        language, region = code.split("_")
        try:
            locale = Locale.parse(code)
        except UnknownLocaleError:
            locale = Locale.parse(f"und_{region}")
        meaning = read_code(code)
        assert (meaning.language, meaning.region) == (language, region)
        assert locale.script in (None, meaning.script)


@pytest.mark.parametrize(
    ("wanted", "known", "found"),
    [
        ("zh", ["zh_CN", "zh"], ["zh"]),
        ("zh-CN", ["zh", "zh_TW"], ["zh"]),
        ("cmn", ["zh", "zh-TW"], ["zh"]),
        ("zh", ["zh-Hans", "zh-Hant"], ["zh-Hans", "zh-Hant"]),
        ("zh_TW", ["zho_Hans", "zho_Hant"], ["zho_Hant"]),
        ("zh", ["zh-TW"], []),
        ("sr-Latn", ["sr"], []),
        ("pt-BR", ["pt", "pt-PT"], ["pt"]),
        ("pt-BR", ["pt-PT"], []),
        ("pt", ["pt-BR"], ["pt-BR"]),
        ("pt", ["pt-BR", "pt-PT"], ["pt-BR", "pt-PT"]),
        ("EN", ["EN", "en"], ["EN"]),  # a tag that an older vocabulary has
        ("de", ["EN", "fr"], []),
    ],
)
def test_a_language_is_found_where_only_one_can_be_meant(wanted, known, found):
    assert find_language(wanted, known) == found


def test_scripts():
    assert scripts_of("sr") == ("CYRILLIC", "LATIN")
    assert scripts_of("sr-Latn") == ("LATIN",)
    assert scripts_of("zh_TW") == scripts_of("zh")
    assert set(scripts_of("ja")) == {"CJK", "HIRAGANA", "KATAKANA"}
    assert set(TOKENIZER_OF_SCRIPT) <= set(LETTERS_OF_SCRIPT)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("今天上午我们在图书馆讨论了新的翻译系统。", "Hans"),
        ("ロンドンの天気は今日も雨です", "Jpan"),
        ("東京都は日本の首都である", "Jpan"),
        ("日の出 means sunrise, as every dictionary says", "Latn"),
        ("안녕하세요, Delta!", None),  # half of the letters are of either
        ("สวัสดีชาวโลก", "Thai"),
        ("ສະບາຍດີ", "Laoo"),
        ("សួស្តី", "Khmr"),
        ("မင်္ဂလာပါ", "Mymr"),
        ("བཀྲ་ཤིས་བདེ་ལེགས།", "Tibt"),
        ("Привет, мир", "Cyrl"),
        ("123 …", None),
    ],
)
def test_the_main_script_of_a_text(text, script):
    assert main_script([text]) == script


def test_codes_that_clients_make_up_are_not_kept():
    for number in range(1_000, 6_000):
        assert read_code(f"en-{number}").language == "en"  # of a variant that nobody has heard of
    assert read_code.cache_info().currsize <= 4_096
