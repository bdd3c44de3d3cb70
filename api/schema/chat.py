"""Bodies and answers of chats, sessions, completions, search apps and the OpenAI routes, as the API's documentation shows them.

Those routes read their bodies tolerantly (contract, 2.4): unknown keys are ignored, checks and texts are the handlers'.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Tolerant(BaseModel):
    """A body in which further keys are ignored."""

    model_config = ConfigDict(extra="allow")


class ListQuery(BaseModel):
    """How a list is cut and ordered."""

    page: int = Field(1, description="from 1")
    page_size: int = Field(30, description="at most 100")
    orderby: Literal["create_time", "update_time", "name"] = "create_time"
    desc: bool = True
    id: str = Field("", description="only the one with this id")
    name: str = Field("", description="only those of exactly this name; case does not matter")
    keywords: str = Field("", description="only those with this in their name")


class ChatBody(Tolerant):
    """A chat's settings."""

    name: str = Field(description="unique among the chats; at most 255 bytes")
    dataset_ids: list[str] = Field(default_factory=list, description="the datasets it answers from; none makes it a plain chat")
    description: str = "A helpful Assistant"
    icon: str = ""
    llm_id: str | None = Field(None, description="`<model>@<provider>`, an id or an alias; the default chat model when left out")
    llm_setting: dict[str, Any] = Field(default_factory=dict, description="temperature, top_p, max_tokens ...")
    prompt_config: dict[str, Any] = Field(default_factory=dict, description="system, prologue, parameters, empty_response, quote ...")
    rerank_id: str = ""
    top_n: int = Field(6, description="chunks given to the model")
    top_k: int = Field(1024, description="vector candidates")
    similarity_threshold: float = 0.1
    vector_similarity_weight: float = 0.3
    meta_data_filter: dict[str, Any] = Field(default_factory=dict)


class Times(BaseModel):
    """When a thing was made and last changed: milliseconds since the epoch, and as RFC 1123 dates."""

    create_time: int
    create_date: str
    update_time: int
    update_date: str


class ChatReply(Times):
    """A chat."""

    id: str
    tenant_id: str
    name: str
    description: str
    icon: str
    language: str
    llm_id: str
    tenant_llm_id: str | None
    llm_setting: dict[str, Any]
    prompt_type: str
    prompt_config: dict[str, Any]
    meta_data_filter: dict[str, Any]
    similarity_threshold: float
    vector_similarity_weight: float
    top_n: int
    top_k: int
    do_refer: str
    rerank_id: str
    tenant_rerank_id: str | None
    dataset_ids: list[str]
    kb_names: list[str]
    status: str


class ChatPage(BaseModel):
    """One page of chats, without some of their fields."""

    chats: list[dict[str, Any]]
    total: int


class SessionBody(Tolerant):
    """A session's name."""

    name: str = Field("New session", description="cut to 255 characters")


class SessionQuery(ListQuery):
    """Which sessions."""

    user_id: str = ""


class SessionReply(Times):
    """A session with its messages, and what each answer cites."""

    id: str
    chat_id: str
    name: str
    messages: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    user_id: str


class CompletionBody(Tolerant):
    """A question to a chat, or to the model alone. Further keys are variables of the chat's prompt."""

    question: str = Field("", description="the question; or `messages`")
    messages: list[dict[str, Any]] = Field(default_factory=list, description="`{role, content}`; the last one from user")
    chat_id: str = ""
    session_id: str = Field("", description="left out, a session is made; its id is in every frame")
    stream: bool = True
    llm_id: str = Field("", description="another model than the chat's")
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None
    pass_all_history_messages: bool = Field(False, description="`messages` replaces the session's history")
    store_history_messages: bool = True
    legacy: bool = Field(False, description="cumulative answers")
    quote: bool = True
    doc_ids: str | list[str] = Field("", description="answer from these documents only; ids separated by commas, or a list of them")


class Reference(BaseModel):
    """What an answer cites: `[ID:n]` is `chunks[n]`."""

    total: int = 0
    chunks: list[dict[str, Any]] = Field(default_factory=list)
    doc_aggs: list[dict[str, Any]] = Field(default_factory=list)


class CompletionReply(BaseModel):
    """An answer. As a stream: frames with pieces of it, one with `final`, and `{"code":0,"message":"","data":true}`."""

    answer: str
    reference: Reference
    prompt: str
    created_at: float
    audio_binary: None
    id: str
    session_id: str
    chat_id: str
    degraded: list[str] = Field(default_factory=list, description="steps that failed and were left out")
    reasons: dict[str, str] = Field(default_factory=dict, description="why, by step, where something can be told")


class OpenAIBody(Tolerant):
    """A request as OpenAI's clients send it."""

    model: str = Field(description='"model" means the chat\'s own')
    messages: list[dict[str, Any]]
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = Field(None, description="the newer name of `max_tokens`, and the stronger of the two")
    reference: bool = Field(False, description="add what the answer cites")
    reference_metadata: dict[str, Any] = Field(default_factory=dict, description="`{include, fields}`")
    metadata_condition: dict[str, Any] = Field(default_factory=dict, description="answer from documents that meet it")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="the three above, or here")


class EmbeddingBody(Tolerant):
    """Texts to embed."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


class RecommendationBody(Tolerant):
    """A question to find related ones for."""

    question: str
    search_id: str = ""


class MindmapBody(Tolerant):
    """A question and the datasets to map."""

    question: str
    kb_ids: list[str]
    search_id: str = ""


class SearchBody(Tolerant):
    """A saved search."""

    name: str
    description: str = ""
    search_config: dict[str, Any] = Field(default_factory=dict)
    avatar: str | None = None


class SearchCompletionBody(Tolerant):
    """A question to a saved search."""

    question: str
    kb_ids: list[str] = Field(default_factory=list, description="where the search names no datasets of its own")


class SearchReply(Times):
    """A saved search."""

    id: str
    avatar: str | None
    tenant_id: str
    name: str
    description: str
    created_by: str
    search_config: dict[str, Any]
    status: str


class SearchPage(BaseModel):
    """One page of saved searches, without their settings."""

    search_apps: list[dict[str, Any]]
    total: int
