"""What fits into a remote model: its tokenizer is not ours, so tokens are estimated, rather too many than too few."""

_ASCII_CHARACTERS_PER_TOKEN = 3


def estimated_tokens(text: str) -> float:
    """About how many tokens the text takes: the vendor's tokenizer is not ours.

    ASCII counts a token for three characters (four is usual in English), anything else a token a character.
    """
    narrow = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return narrow / _ASCII_CHARACTERS_PER_TOKEN + (len(text) - narrow)


def cut(text: str, max_tokens: int) -> str:
    """The beginning of the text that takes about `max_tokens`. What is no UTF-8 (half a surrogate pair) becomes a question mark."""
    head = text[: max_tokens * _ASCII_CHARACTERS_PER_TOKEN]
    if head.isascii():
        return head
    head = head.encode("utf-8", "replace").decode()
    while (tokens := estimated_tokens(head)) > max_tokens:
        head = head[: int(len(head) * max_tokens / tokens)]
    return head


def windows(text: str, max_tokens: int) -> list[str]:
    """The text in pieces of about `max_tokens` each, none left out; an empty text is one piece."""
    pieces = [cut(text, max_tokens)]
    start = len(pieces[0])
    while start < len(text):
        pieces.append(cut(text[start:], max_tokens))
        start += len(pieces[-1])
    return pieces
