"""Has a chat model turn a question into conditions on the documents' metadata, such as "year is 2024"."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rag.ports import ChatModel
from rag.types import ChatMessage, ChatOptions

MAX_CONDITIONS = 8
MAX_KEYS = 40
MAX_VALUES = 20
VALUE_CHARACTERS = 80
OPTIONS = ChatOptions(temperature=0.0, max_tokens=512)

INSTRUCTION = """\
Documents carry metadata. Decide which of it the user's question asks for, and answer with JSON only:
{"logic": "and", "conditions": [{"name": "<key>", "comparison_operator": "<operator>", "value": "<value>"}]}
Operators: is, not is, >, <, >=, <=, contains, not contains, in, not in, start with, end with.
Use these keys only; some of their values are given. Answer {"conditions": []} when the question names no such restriction."""

_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


async def choose_conditions(model: ChatModel, question: str, values: Mapping[str, Sequence[str]]) -> dict[str, Any] | None:
    """`{"logic", "conditions"}` as in a metadata condition; None where the question restricts nothing.

    `values` maps the metadata's keys to examples of their values. Raises `ProviderError`. What is no condition on one of these
    keys is dropped.
    """
    keys = {key: [value[:VALUE_CHARACTERS] for value in examples[:MAX_VALUES]] for key, examples in list(values.items())[:MAX_KEYS]}
    if not keys:
        return None
    task = f"Metadata:\n{orjson.dumps(keys).decode()}\n\nQuestion:\n{question}"
    reply = await model.complete((ChatMessage("system", INSTRUCTION), ChatMessage("user", task)), OPTIONS)
    return _conditions(reply.text, keys)


def _conditions(text: str, keys: Mapping[str, Any]) -> dict[str, Any] | None:
    found = _OBJECT.search(text)
    try:
        answer = orjson.loads(found[0]) if found else None
    except orjson.JSONDecodeError:
        return None
    conditions = answer.get("conditions") if isinstance(answer, dict) else None
    if not isinstance(conditions, list):
        return None
    kept = [item for item in conditions if _is_condition(item) and item["name"] in keys][:MAX_CONDITIONS]
    return {"logic": "or" if answer.get("logic") == "or" else "and", "conditions": kept} if kept else None


def _is_condition(item: Any) -> bool:
    return isinstance(item, dict) and {"name", "comparison_operator", "value"} <= item.keys() and isinstance(item["name"], str)
