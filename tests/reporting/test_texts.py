"""The catalogues: complete, of one kind, and nothing in them that nobody says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po
from fontTools.ttLib import TTFont

import medfl.reporting
from medfl.reporting import han_font
from medfl.reporting.texts import PageTexts, Texts

HOME = Path(medfl.reporting.__file__).parent
LANGUAGES = ("en", "zh")
KEY = re.compile(r'"([a-z0-9_]+(?:\.[A-Za-z0-9_.-]+)+)"')

# Words of Chinese texts that are names, symbols, or terms which the field writes in Latin letters.
LATIN = {
    *("medfl", "ledger", "verify", "audit", "study", "json", "code", "strong", "sup", "b"),
    *("epsilon", "odds", "zero-out", "replace-one", "C", "k", "e", "L", "h", "δ"),
    *("r", "q", "n", "m"),
    *("Dice", "FLAIR", "T1", "T2", "AUC", "BraTS", "mm", "CPU", "Box", "Muller", "AES-256"),
    *("PLD", "PRV", "RDP", "dp-accounting", "Opacus", "Python", "SHA-256", "MRI"),
    *("WP", "a", "c", "d", "cache", "clear", "site", "clean", "server", "run", "plan", "budget"),
    *("pause", "leave", "overlap", "export", "adapt", "answer", "seconds", "MB"),
    *("Vadhan", "Steinke", "Mahloujifar", "Geiping", "et", "al", "arXiv"),
}


def catalogue(language: str) -> Catalog:
    with (HOME / "catalogues" / f"{language}.po").open("rb") as file:
        return read_po(file)


def messages(language: str) -> dict[str, Message]:
    found = {}
    for message in catalogue(language):
        if message.id:
            found[message.id if isinstance(message.id, str) else message.id[0]] = message
    return found


def forms(message: Message) -> tuple[str, ...]:
    """The text, or one for each plural form."""
    return (message.string,) if isinstance(message.string, str) else tuple(message.string)


def names(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def sources() -> Iterator[str]:
    for path in sorted([*HOME.rglob("*.py"), *HOME.rglob("*.j2")]):
        yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_uncertain_or_given_up(language: str) -> None:
    found = catalogue(language)
    assert not found.obsolete
    assert not found.fuzzy
    for key, message in messages(language).items():
        assert not message.fuzzy, key
        assert all(form.strip() for form in forms(message)), key
        assert len(forms(message)) == (found.num_plurals if message.pluralizable else 1), key


def test_both_languages_have_the_same_texts_with_the_same_names_and_markup() -> None:
    english, chinese = (messages(language) for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    for key in english:
        assert english[key].pluralizable == chinese[key].pluralizable, key
        filled = [set[str]().union(*map(names, forms(one[key]))) for one in (english, chinese)]
        assert filled[0] == filled[1], key
        marked = [set(re.findall(r"</?[a-z]+>", forms(one[key])[0])) for one in (english, chinese)]
        assert marked[0] == marked[1], key


def test_every_text_is_said_and_every_text_that_is_said_is_there() -> None:
    known = set(messages("en"))
    kinds = {key.partition(".")[0] for key in known}
    said = {key for source in sources() for key in KEY.findall(source)}
    assert known - said == set()
    assert {key for key in said if key.partition(".")[0] in kinds} - known == set()


@pytest.mark.parametrize(
    "name", ["report.html.j2", "study_grid.html.j2", "document.html.j2", "page_parts.html.j2"]
)
def test_templates_and_tables_hold_no_sentence_of_their_own(name: str) -> None:
    template = (HOME / name).read_text(encoding="utf-8")
    page = template[max(0, template.find("<body")) :]
    bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"[A-Za-z]{2,}", bare)


def test_a_chinese_text_holds_latin_letters_for_names_only() -> None:
    for key, message in messages("zh").items():
        for text in forms(message):
            bare = re.sub(r"\{\w+\}", " ", text)
            words = set(re.findall(r"[A-Za-z][A-Za-z0-9-]*", bare))
            assert words <= LATIN, (key, words - LATIN)
            if names(text) != set() or not words:
                continue
            assert re.search(r"[\u4e00-\u9fff]", text) or len(words) <= 2, key


def test_the_font_has_every_character_of_the_chinese_catalogue() -> None:
    with TTFont(HOME / "fonts" / "NotoSansSC-Regular.otf") as font:
        drawn = font.getBestCmap().keys()
    shown = "".join(form for message in messages("zh").values() for form in forms(message))
    assert {
        letter for letter in shown if ord(letter) >= 0x2E80 and ord(letter) not in drawn
    } == set()


def test_only_pages_with_chinese_characters_carry_a_font() -> None:
    assert han_font.embeddable("North, ε ≤ 8 · “yes” … ⁻⁵") == ""
    assert len(han_font.embeddable("北京")) < len(han_font.embeddable("北京上海广州")) < 8000


def test_an_unknown_key_and_a_name_without_a_value_are_errors() -> None:
    for language in LANGUAGES:
        texts = Texts(language)  # type: ignore[arg-type]
        with pytest.raises(KeyError):
            texts("no.such.text")
        with pytest.raises(KeyError):
            texts.count("no.such.text", 2)
        with pytest.raises(KeyError):
            texts("page.title")


def test_numbers_dates_and_lists_follow_the_language() -> None:
    english, chinese = Texts("en"), Texts("zh")
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    assert (english.day(moment), chinese.day(moment)) == ("31 January 2026", "2026年1月31日")
    assert english.listing(["A", "B", "C"]) == "A, B and C"
    assert chinese.listing(["A", "B", "C"]) == "A、B和C"
    assert [english.count("count.site", number) for number in (0, 1, 2, 4000)] == [
        "0 sites",
        "1 site",
        "2 sites",
        "4,000 sites",
    ]
    assert [chinese.count("count.site", number) for number in (1, 4000)] == [
        "1 个中心",
        "4,000 个中心",
    ]
    assert english.sentences("A.", None, "B.") == "A. B."
    assert chinese.sentences("甲。", False, "乙。") == "甲。乙。"


def test_what_is_filled_into_a_page_cannot_write_it() -> None:
    said = PageTexts(Texts("zh"))("gains.least", site="<img>", gain="1", region="R")
    assert "<b>&lt;img&gt;</b>" in said
