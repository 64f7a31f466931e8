"""`Texts`: what a report says, in the language that its reader chose.

Every sentence stands in a catalogue (``catalogues/en.po``, ``catalogues/zh.po``) under a key that
code and templates name, so that whoever corrects a language touches neither. Plural forms, dates
and lists follow the rules of the Unicode CLDR, through Babel. The catalogues are read as they are
written: nothing compiled lies beside them that could be older than they are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from gettext import GNUTranslations
from importlib import resources
from typing import Literal

from babel import Locale
from babel.dates import format_date
from babel.lists import format_list
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from markupsafe import Markup

Language = Literal["en", "zh"]

_LOCALES: Mapping[Language, str] = {"en": "en_GB", "zh": "zh_Hans_CN"}
_TAGS: Mapping[Language, str] = {"en": "en", "zh": "zh-Hans"}
_BETWEEN_SENTENCES: Mapping[Language, str] = {"en": " ", "zh": ""}


class _Catalogue(GNUTranslations):
    """A key without a text is an error: it must not be shown in its place."""

    def gettext(self, message: str) -> str:
        found = super().gettext(message)
        if found == message:
            raise KeyError(message)
        return found

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        found = super().ngettext(msgid1, msgid2, n)
        if found == msgid1:
            raise KeyError(msgid1)
        return found


class Texts:
    """The texts of one language.

    Args:
        language: English, or Chinese in simplified characters.
    """

    def __init__(self, language: Language) -> None:
        self.language: Language = language
        self.tag = _TAGS[language]

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key with its names filled in.

        Raises:
            KeyError: If the catalogue has no such text, or the text a name without a value.
        """
        return self._catalogue.gettext(key).format(**values)

    def count(self, key: str, number: int, **values: object) -> str:
        """The text of a key in the form that belongs to a number, which it may name ``number``."""
        text = self._catalogue.ngettext(key, key, number)
        return text.format(number=self.number(number), **values)

    def number(self, value: int) -> str:
        """An integer as it is written, thousands separated."""
        return format_decimal(value, locale=self._locale)

    def listing(self, names: Sequence[str]) -> str:
        """``A``, ``A and B``, ``A, B and C``."""
        return format_list(list(names), locale=self._locale)

    def day(self, moment: datetime) -> str:
        """``31 January 2026``."""
        return format_date(moment.date(), "long", locale=self._locale)

    def sentences(self, *parts: str | Literal[False] | None) -> str:
        """Sentences one after the other; those that are nothing are left out."""
        return _BETWEEN_SENTENCES[self.language].join(part for part in parts if part)

    @cached_property
    def _locale(self) -> Locale:
        return Locale.parse(_LOCALES[self.language])

    @cached_property
    def _catalogue(self) -> _Catalogue:
        source = resources.files("medfl.reporting") / "catalogues" / f"{self.language}.po"
        compiled = io.BytesIO()
        write_mo(compiled, read_po(io.BytesIO(source.read_bytes())))
        compiled.seek(0)
        return _Catalogue(compiled)


class PageTexts:
    """The same for a page: a text may hold markup, and whatever is filled in is escaped.

    Args:
        texts: Of the page's language.
    """

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __call__(self, key: str, **values: object) -> Markup:
        """As `Texts.__call__`."""
        return Markup(self._texts(key, **_escaped(values)))  # noqa: S704

    def count(self, key: str, number: int, **values: object) -> Markup:
        """As `Texts.count`."""
        return Markup(self._texts.count(key, number, **_escaped(values)))  # noqa: S704

    def sentences(self, *parts: str | Literal[False] | None) -> Markup:
        """As `Texts.sentences`."""
        return Markup(self._texts.sentences(*(part and Markup.escape(part) for part in parts)))  # noqa: S704


def _escaped(values: Mapping[str, object]) -> dict[str, Markup]:
    return {name: Markup.escape(value) for name, value in values.items()}


ENGLISH = Texts("en")
"""Where nobody chose: commands speak English."""
