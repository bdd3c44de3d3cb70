"""Counts a model's tokens fast: by memoised runs of characters instead of by whole texts.

A WordPiece tokenizer breaks text at blanks and around every CJK ideograph before it does anything else, so the count of a
text is the sum over such runs, and the runs of a language repeat: most are looked up, few are tokenized. Splitters also need
to know where the tokens are, not only how many: `runs` tells both.
"""

import json
import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

from rag.errors import SettingsError

MEMO_RUNS = 200_000  # about 25 MB when full
MEMO_RUN_CHARACTERS = 128  # longer runs hardly ever repeat
RUN_CHARACTERS = 100  # WordPiece reads a longer word as one [UNK]; cut in pieces, it can be split
IDEOGRAPHS_AT_ONCE = 16  # for tokenizers that merge ideographs

# What BERT's normaliser replaces by a blank, and the ideographs it puts blanks around (tokenizers: normalizers/bert.rs).
_BLANKS = " \t\n\r\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_PUNCTUATION = r"!-/:-@\[-`{-~"
_LETTER = f"[^{_BLANKS}{_IDEOGRAPHS}]"


def _run_pattern(ideographs_at_once: int) -> re.Pattern[str]:
    """A run with the blanks before it. A run of over 100 characters is cut after its last ASCII punctuation before, or there."""
    return re.compile(
        f"[{_BLANKS}]*+(?:[{_IDEOGRAPHS}]{{1,{ideographs_at_once}}}"
        f"|{_LETTER}{{1,{RUN_CHARACTERS}}}+(?!{_LETTER})"
        f"|{_LETTER}{{0,{RUN_CHARACTERS - 1}}}[{_PUNCTUATION}]"
        f"|{_LETTER}{{1,{RUN_CHARACTERS}}})"
    )


@dataclass(frozen=True, slots=True)
class TokenRuns:
    """A text cut into runs, each with the blanks before it, as running totals that a splitter can bisect.

    Both lists start with 0 and have one entry more than there are runs: run i is `text[ends[i]:ends[i + 1]]` and has
    `tokens[i + 1] - tokens[i]` tokens. Blanks at the end of the text belong to no run.
    """

    ends: list[int]
    tokens: list[int]


class TokenCounter:
    """Counts tokens as the tokenizer in `tokenizer_path` (a `tokenizer.json`) makes them, without special tokens.

    Exact for WordPiece, but that a word of 100 characters or more, which is one unknown token to the model, counts one token for
    every 100 characters and what its rest counts. Close, and rather too high, for others. Thread-safe; memory is bounded.
    """

    def __init__(self, tokenizer_path: Path, memo_runs: int = MEMO_RUNS) -> None:
        """Raises `SettingsError` where the file is no tokenizer."""
        try:
            model = json.loads(tokenizer_path.read_bytes())["model"]
            tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as exc:  # the library raises plain Exception
            raise SettingsError(f"tokenizer file {tokenizer_path.name} cannot be read") from exc
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._memo = _Memo(tokenizer, memo_runs)
        self._pattern = _run_pattern(1 if model.get("type") == "WordPiece" else IDEOGRAPHS_AT_ONCE)

    def count(self, text: str) -> int:
        """How many tokens the text has."""
        return sum(map(self._memo.__getitem__, self._cut(text)))

    def runs(self, text: str) -> TokenRuns:
        """Where the text's runs end and how many tokens there are up to each."""
        runs = self._cut(text)
        return TokenRuns(
            ends=list(accumulate(map(len, runs), initial=0)),
            tokens=list(accumulate(map(self._memo.__getitem__, runs), initial=0)),
        )

    def _cut(self, text: str) -> list[str]:
        # Without rstrip every blank at the end would be tried as the start of a run: quadratic.
        return self._pattern.findall(text.rstrip(_BLANKS))


class _Memo(dict[str, int]):
    """Token counts by run. Emptied when full: simpler than evicting, and the common runs are back at once."""

    def __init__(self, tokenizer: Tokenizer, limit: int) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._limit = limit

    def __missing__(self, run: str) -> int:
        count = self._count(run)
        if len(run) <= MEMO_RUN_CHARACTERS:
            if len(self) >= self._limit:
                self.clear()
            self[run] = count
        return count

    def _count(self, run: str) -> int:
        text = _encodable(run)
        letters = text.lstrip(_BLANKS)
        # A piece of a longer word that is one unknown token counts as one: its letters are nothing to the model.
        if len(letters) >= RUN_CHARACTERS and len(self._tokenizer.encode(letters + letters, add_special_tokens=False).ids) == 1:
            return 1
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _encodable(run: str) -> str:
    """The run with lone surrogates, which the tokenizer refuses, replaced."""
    return run if run.isascii() else run.encode("utf-8", "replace").decode()
