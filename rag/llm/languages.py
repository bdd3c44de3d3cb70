"""How much of a text is written in the scripts of the languages a model knows: its `Embedder.trust`.

English counts the 26 letters only: a model that learnt English reads "naïve" but not Polish or Vietnamese. Every other language
counts its whole script, since letters cannot tell Spanish from Portuguese.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from rag.errors import SettingsError

JUDGED_CHARACTERS = 10_000  # of a longer text the rest is hardly ever in another script

_ASCII = "ASCII"
_SCRIPTS_OF_LANGUAGE = {
    "en": (_ASCII,),
    "ar": ("ARABIC",), "fa": ("ARABIC",), "ur": ("ARABIC",), "he": ("HEBREW",), "el": ("GREEK",),
    "ru": ("CYRILLIC",), "uk": ("CYRILLIC",), "bg": ("CYRILLIC",), "sr": ("CYRILLIC", "LATIN"), "mk": ("CYRILLIC",),
    "zh": ("CJK",), "ja": ("CJK", "HIRAGANA", "KATAKANA"), "ko": ("HANGUL", "CJK"), "th": ("THAI",),
    "hi": ("DEVANAGARI",), "mr": ("DEVANAGARI",), "ne": ("DEVANAGARI",), "bn": ("BENGALI",), "ta": ("TAMIL",), "te": ("TELUGU",),
    "ka": ("GEORGIAN",), "hy": ("ARMENIAN",),
}  # fmt: skip
_LATIN_LANGUAGES = (
    "af", "az", "ca", "cs", "cy", "da", "de", "es", "et", "eu", "fi", "fr", "ga", "gl", "hr", "hu", "id", "is", "it",
    "lt", "lv", "ms", "mt", "nb", "nl", "nn", "no", "pl", "pt", "ro", "sk", "sl", "sq", "sv", "sw", "tl", "tr", "vi",
)  # fmt: skip
_SCRIPTS_OF_LANGUAGE |= dict.fromkeys(_LATIN_LANGUAGES, ("LATIN",))


def scripts_of(languages: Sequence[str], model: str) -> frozenset[str]:
    """The scripts of ISO 639-1 codes, for `understood_share`. Raises `SettingsError` for a code that is not known here."""
    unknown = [language for language in languages if language not in _SCRIPTS_OF_LANGUAGE]
    if unknown:
        raise SettingsError(f"model {model}: language {unknown[0]!r} is not one of {' '.join(sorted(_SCRIPTS_OF_LANGUAGE))}")
    return frozenset(script for language in languages for script in _SCRIPTS_OF_LANGUAGE[language])


def understood_share(text: str, scripts: frozenset[str]) -> float:
    """The share of the text's letters that belong to the scripts, 0 to 1; 1.0 without letters, or when no script was named.

    A text longer than `JUDGED_CHARACTERS` is judged by its beginning: this runs on the event loop.
    """
    if not scripts:
        return 1.0
    letters = [char for char in text[:JUDGED_CHARACTERS] if char.isalpha()]
    if not letters:
        return 1.0
    return sum(_is_in(char, scripts) for char in letters) / len(letters)


def _is_in(letter: str, scripts: frozenset[str]) -> bool:
    if letter.isascii():
        return _ASCII in scripts or "LATIN" in scripts
    return _script(letter) in scripts


@lru_cache(maxsize=8192)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
