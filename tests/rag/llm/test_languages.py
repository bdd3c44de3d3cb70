"""How much of a text a model of some languages understands."""

import pytest

from rag.errors import SettingsError
from rag.llm.languages import JUDGED_CHARACTERS, scripts_of, understood_share

SHARES = [
    ((), "水 and water", 1.0),
    (("en",), "water", 1.0),
    (("en",), "水水wa", 0.5),
    (("en",), "", 1.0),
    (("en",), "12 + 3 = 15 😀", 1.0),
    (("de",), "Größe", 1.0),
    (("en",), "Größe", 0.6),
    (("en", "zh"), "水 and water", 1.0),
    (("zh",), "water", 0.0),
    (("ja",), "水をください", 1.0),
    (("ru",), "Москва", 1.0),
    (("ko",), "물", 1.0),
]


@pytest.mark.parametrize(("languages", "text", "share"), SHARES)
def test_the_share_of_letters_in_the_languages_scripts(languages: tuple[str, ...], text: str, share: float) -> None:
    assert understood_share(text, scripts_of(languages, "m@P")) == pytest.approx(share)


def test_an_unknown_language_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="'english'"):
        scripts_of(["english"], "m@P")


def test_a_long_text_is_judged_by_its_beginning() -> None:
    assert understood_share("w" * JUDGED_CHARACTERS + "水" * JUDGED_CHARACTERS, scripts_of(("en",), "m@P")) == 1.0
