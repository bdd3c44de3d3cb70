"""From a chat's settings and a request to what `async_chat` needs: messages, model, options, variables, retrieval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.chat_input import PROMPT_DEFAULTS, SYSTEM, check_one_embedding
from api.errors import ApiError
from api.likeness import comparing
from api.parts import Parts
from api.retrieving import DocumentFilter, Search, retrieve
from api.token_counters import token_counter
from db.services.conversation_service import MessageRecord
from db.services.dialog_service import DialogRecord
from rag.errors import NotFound
from rag.flow.chat import ChatTask
from rag.nlp.search import RetrievalRequest
from rag.ports import ChatModel
from rag.types import ChatMessage, ChatOptions

OPTION_KEYS: Mapping[str, type[int] | type[float]] = {
    "temperature": float, "top_p": float, "frequency_penalty": float, "presence_penalty": float, "max_tokens": int,
}  # fmt: skip
DEFAULT_TOP_N = 6
MAX_TOP_N = 100
MAX_MESSAGES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request asks of a chat: the messages the model shall see, the last one from the user, and how to answer."""

    messages: Sequence[ChatMessage]
    model: ChatModel | None
    options: ChatOptions
    variables: Mapping[str, str]
    cite: bool = True
    document_ids: tuple[str, ...] | None = None
    condition: Mapping[str, Any] | None = None


def prologue_of(chat: DialogRecord) -> str:
    """What a session of the chat opens with."""
    return str(chat.prompt_config.get("prologue", PROMPT_DEFAULTS["prologue"]) or "")


def model_for(parts: Parts, name: str) -> ChatModel | None:
    """The chat model of that name, the default one for "". None is the extractive answerer. Raises `ApiError` 102/404."""
    try:
        return parts.models.chat(name or None)
    except NotFound:
        raise ApiError(102, f"Cannot use specified model {name}.", 404) from None


def options_of(body: Mapping[str, Any], setting: Mapping[str, Any], other_model: bool) -> ChatOptions:
    """The sampling options: the chat's own first, the request's where it names another model or the chat has none.

    Raises `ApiError` (101) for one in the request that is no number.
    """
    asked = {key: _asked_option(body, key) for key in OPTION_KEYS}
    stored = {key: _stored_option(setting, key) for key in OPTION_KEYS}
    first, second = (asked, stored) if other_model else (stored, asked)
    chosen = {key: second[key] if first[key] is None else first[key] for key in OPTION_KEYS}
    return ChatOptions(**{key: kind(chosen[key]) for key, kind in OPTION_KEYS.items() if chosen[key] is not None})


def variables_of(chat: DialogRecord | None, body: Mapping[str, Any]) -> dict[str, str]:
    """The values for the prompt's placeholders. Raises `ApiError` (101) where one that is needed is missing."""
    values = {"date": datetime.now().astimezone().date().isoformat()}
    parameters = [] if chat is None else chat.prompt_config.get("parameters") or []
    for parameter in parameters if isinstance(parameters, list) else []:
        key = parameter.get("key") if isinstance(parameter, dict) else None
        if not isinstance(key, str) or key == "knowledge":
            continue
        if key in body:
            values[key] = str(body[key])
        elif key not in values and not parameter.get("optional"):
            raise ApiError(101, f"Miss parameter: {key}")
        else:
            values.setdefault(key, " ")
    return values


def read_messages(body: Mapping[str, Any]) -> list[MessageRecord]:
    """The posted messages, or the one made from `question`. Raises `ApiError` (101) with the contract's texts."""
    if "messages" not in body:
        if "question" not in body:
            raise ApiError(101, "required argument are missing: messages")
        check_question(body["question"])
        body = {"messages": [{"role": "user", "content": body["question"]} | ({"files": body["files"]} if body.get("files") else {})]}
    posted = body["messages"]
    if not isinstance(posted, list) or not posted:
        raise ApiError(101, "`messages` must be a non-empty list.")
    check_length(posted)
    if not all(isinstance(item, dict) for item in posted):
        raise ApiError(101, "Every item in `messages` must be an object.")
    if not all("role" in item and "content" in item for item in posted):
        raise ApiError(101, "Every item in `messages` must include `role` and `content`.")
    if not any(item["role"] == "user" for item in posted):
        raise ApiError(101, "`messages` must contain a user message.")
    if posted[-1]["role"] != "user":
        raise ApiError(101, "The last message must be from user.")
    messages = [_record(item) for item in posted if item["role"] in ("user", "assistant")]
    if not messages[-1].content.strip():
        raise ApiError(101, "`content` of the last message must not be empty")
    return messages


def check_question(value: Any) -> str:
    """The question without blanks around it. Raises `ApiError` (101) where there is none."""
    if not isinstance(value, str):
        raise ApiError(101, "`question` should be a string")
    if not value.strip():
        raise ApiError(101, "`question` must not be empty")
    return value.strip()


def check_length(messages: Sequence[Any]) -> None:
    """Raises `ApiError` (101) for more messages than a conversation has."""
    if len(messages) > MAX_MESSAGES:
        raise ApiError(101, f"`messages` must contain at most {MAX_MESSAGES} messages")


def for_model(messages: Sequence[MessageRecord]) -> list[ChatMessage]:
    """The conversation as the model sees it: from the user's first message on."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), len(messages))
    return [ChatMessage(message.role, message.content) for message in messages[first:]]  # type: ignore[arg-type]


def task_of(parts: Parts, tenant: str, chat: DialogRecord | None, ask: Ask) -> ChatTask:
    """The task of answering `ask` as `chat` does; None is the model alone, without datasets and instruction. Raises `ApiError`."""
    seconds = parts.settings.chat_timeout_seconds
    if chat is None:
        return ChatTask(
            messages=ask.messages, system="", model=ask.model, retrieve=None, count_tokens=counter_of(parts), options=ask.options,
            deadline_seconds=seconds, lane=parts.lanes.search,
        )  # fmt: skip
    config = chat.prompt_config
    search = _search_of(tenant, chat, ask) if chat.datasets else None
    return ChatTask(
        messages=ask.messages,
        system=str(config.get("system") or SYSTEM),
        model=ask.model,
        retrieve=None if search is None else lambda question: retrieve(parts, search, question),
        count_tokens=counter_of(parts),
        variables=ask.variables,
        options=ask.options,
        empty_response=str(config.get("empty_response") or ""),
        cite=ask.cite and bool(config.get("quote", True)),
        compare=None if search is None else comparing(parts, tenant, search.embedding_model),
        refine_multiturn=bool(config.get("refine_multiturn", True)),
        keyword=bool(config.get("keyword")),
        cross_languages=languages_of(config.get("cross_languages")),
        deadline_seconds=seconds,
        lane=parts.lanes.search,
    )


def counter_of(parts: Parts) -> Callable[[str], int]:
    """Counts tokens by the default embedding model's tokenizer: close to any chat model's, rather too high than too low."""
    return token_counter(parts.models.embedder().tokenizer_path).count


def languages_of(value: Any) -> tuple[str, ...]:
    """The languages named by `cross_languages`; none for what is no list."""
    return tuple(str(language) for language in value if language) if isinstance(value, list) else ()


def _search_of(tenant: str, chat: DialogRecord, ask: Ask) -> Search:
    check_one_embedding([dataset.embedding_model for dataset in chat.datasets])
    return Search(
        request=RetrievalRequest(
            question="",
            tenant_id=tenant,
            dataset_ids=tuple(dataset.id for dataset in chat.datasets),
            page_size=min(chat.top_n, MAX_TOP_N) if chat.top_n > 0 else DEFAULT_TOP_N,
            top_k=chat.top_k if chat.top_k > 0 else 1024,
            similarity_threshold=chat.similarity_threshold,
            vector_similarity_weight=chat.vector_similarity_weight,
        ),
        embedding_model=chat.datasets[0].embedding_model,
        rerank_id=chat.rerank_id,
        documents=DocumentFilter(ask.document_ids, ask.condition, chat.meta_data_filter),
        model=ask.model,
        data_versions=tuple(dataset.data_version for dataset in chat.datasets),
        count_by_name=False,  # an answer counts the chunks it was given, and those know their documents' names
    )


def _asked_option(body: Mapping[str, Any], key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        raise ApiError(101, f"`{key}` should be a number")
    return value


def _stored_option(setting: Mapping[str, Any], key: str) -> float | None:
    """Settings are stored as sent; one that is no number, or switched off, counts as not set."""
    value = setting.get(key)
    if setting.get(f"{key}_enabled") is False or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return None if key == "max_tokens" and value <= 0 else value


def _record(item: Mapping[str, Any]) -> MessageRecord:
    content = item["content"]
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text")
    if not isinstance(content, str):
        raise ApiError(101, "`content` of a message should be a string")
    turn_id = item.get("id")
    extra = {"files": item["files"]} if item.get("files") else {}
    return MessageRecord(item["role"], content, turn_id if isinstance(turn_id, str) else "", None, _time(item.get("created_at")), extra)


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
