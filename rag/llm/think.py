"""Tells a model's reasoning from its answer where both come as one text, the reasoning between `<think>` and `</think>`."""

from rag.types import ChatDelta

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Takes the text in pieces of any size and gives it back as deltas; a tag may be cut anywhere.

    Only a text that begins with the tag has reasoning: an answer that speaks about `<think>` further down keeps it.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"

    def feed(self, piece: str) -> list[ChatDelta]:
        """The deltas that are certain now."""
        if self._state == "answer":
            return _delta(text=piece)
        self._held += piece
        deltas: list[ChatDelta] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held = "reasoning", begun[len(_OPEN) :]
            elif not _OPEN.startswith(begun):
                self._state = "answer"
        if self._state == "reasoning":
            reasoning, closed, rest = self._held.partition(_CLOSE)
            kept = 0 if closed else _overlap(reasoning, _CLOSE)
            deltas += _delta(reasoning=reasoning[: len(reasoning) - kept])
            self._state, self._held = ("gap", rest) if closed else ("reasoning", reasoning[len(reasoning) - kept :])
        if self._state == "gap":
            # the empty lines between the two belong to neither
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "gap"
        if self._state == "answer":
            deltas += _delta(text=self._held)
            self._held = ""
        return deltas

    def flush(self) -> list[ChatDelta]:
        """What is still held when the text ends."""
        held, self._held = self._held, ""
        return _delta(reasoning=held) if self._state == "reasoning" else _delta(text=held)


def _delta(text: str = "", reasoning: str = "") -> list[ChatDelta]:
    return [ChatDelta(text=text, reasoning=reasoning)] if text or reasoning else []


def _overlap(text: str, tag: str) -> int:
    """How many characters at the text's end may be the beginning of the tag."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)
