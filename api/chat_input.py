"""Reads a chat's settings out of a request body (contract, 9): checks in the contract's order, its texts, its defaults."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from api.body import check_name
from api.errors import ApiError
from api.parts import Parts
from db.services import dataset_service
from db.services.dataset_service import DatasetBrief
from db.services.dialog_service import DialogRecord
from rag.errors import NotFound

Mode = Literal["create", "replace", "merge"]

NAME_BYTES = 255
TEXT_CHARACTERS = 65_535
WHOLE_LIMIT = (1 << 31) - 1  # what a column of whole numbers holds
RERANKERS_ALWAYS_TAKEN = ("BAAI/bge-reranker-v2-m3", "maidalun1020/bce-reranker-base_v1")

SYSTEM = """\
You are an intelligent assistant. Please summarize the content of the dataset to answer the question. Please list the data in the \
dataset and answer in detail. When all dataset content is irrelevant to the question, your answer must include the sentence "The \
answer you are looking for is not found in the dataset!" Answers need to consider chat history.
      Here is the knowledge base:
      {knowledge}
      The above is the knowledge base."""

DATE_PARAMETER = {"key": "date", "optional": True}
PROMPT_DEFAULTS: Mapping[str, Any] = {
    "system": SYSTEM,
    "prologue": "Hi! I'm your assistant. What can I do for you?",
    "parameters": [{"key": "knowledge", "optional": False}],
    "empty_response": "Sorry! No relevant content was found in the knowledge base!",
    "quote": True,
    "tts": False,
    "refine_multiturn": True,
}
DEFAULTS: Mapping[str, Any] = {
    "description": "A helpful Assistant", "icon": "", "llm_id": "", "llm_setting": {}, "top_n": 6, "top_k": 1024,
    "similarity_threshold": 0.1, "vector_similarity_weight": 0.3, "rerank_id": "", "dataset_ids": [], "meta_data_filter": {},
}  # fmt: skip
TEXTS = ("description", "icon", "language")
NUMBERS = {"top_n": int, "top_k": int, "similarity_threshold": float, "vector_similarity_weight": float}

# what chats were made of before 0.25: key of `prompt` -> key of `prompt_config`
OLD_PROMPT_KEYS = {
    "variables": "parameters",
    "opener": "prologue",
    "show_quote": "quote",
    "prompt": "system",
    "empty_response": "empty_response",
    "tts": "tts",
    "refine_multiturn": "refine_multiturn",
}


async def read_chat(parts: Parts, tenant_id: str, body: Mapping[str, Any], current: DialogRecord | None, mode: Mode) -> dict[str, Any]:
    """The columns to write. With mode "merge", `llm_setting` and `prompt_config` are merged into those of `current`.

    Raises `ApiError` with the contract's texts.
    """
    body = _modern(body)
    if mode != "merge" and body.get("tenant_id"):
        raise ApiError(102, "`tenant_id` must not be provided")
    values = _name(body, mode)
    values |= await _datasets(parts, tenant_id, body)
    values |= _models(parts, body)
    values |= _prompt_config(body, current, mode)
    values |= _llm_setting(body, current, mode)
    values |= _plain(body)
    return {**DEFAULTS, **values} if mode == "create" else values


async def owned_datasets(parts: Parts, tenant_id: str, dataset_ids: Sequence[Any]) -> list[DatasetBrief]:
    """The tenant's datasets in the order given, which all use one embedding model.

    Raises `ApiError`: 102/404 for one that is not the tenant's, 102 where the models differ.
    """
    keys = {str(dataset_id): str(dataset_id).replace("-", "") for dataset_id in dataset_ids}
    found = await parts.session.read(dataset_service.briefs, tenant_id, list(keys.values()))
    for given, key in keys.items():
        if key not in found:
            raise ApiError(102, f"You don't own the dataset {given}", 404)
    datasets = [found[key] for key in dict.fromkeys(keys.values())]
    check_one_embedding([dataset.embedding_model for dataset in datasets])
    return datasets


def check_one_embedding(models: Sequence[str]) -> None:
    """Raises `ApiError` where datasets with these embedding models cannot be searched together (contract, 7.2)."""
    different = sorted(set(models))
    if len(different) < 2:
        return
    if not all(different):
        raise ApiError(102, "Cannot search across datasets where some have embedding models and others do not.")
    raise ApiError(102, f"Datasets use different embedding models: {different}")


def _name(body: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    name = body.get("name")
    if name is None:
        if mode == "create" or (mode == "replace" and "name" in body):
            raise ApiError(102, "`name` is required")
        return {}
    if not isinstance(name, str):
        raise ApiError(102, "chat name must be a string")
    name = name.strip()
    if not name:
        raise ApiError(102, "`name` cannot be empty" if mode == "merge" else "`name` is required")
    size = len(name.encode())
    if size > NAME_BYTES:
        raise ApiError(102, f"chat name length is {size} which is larger than {NAME_BYTES}")
    return {"name": check_name(name)}


async def _datasets(parts: Parts, tenant_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    key = "dataset_ids" if "dataset_ids" in body else "kb_ids"
    if key not in body:
        return {}
    ids = [] if body[key] is None else body[key]
    if not isinstance(ids, list):
        raise ApiError(102, "`dataset_ids` should be a list.")
    datasets = await owned_datasets(parts, tenant_id, [dataset_id for dataset_id in ids if dataset_id])
    for dataset in datasets:
        if not dataset.chunk_count:
            raise ApiError(102, f"The dataset {dataset.id} doesn't own parsed file", 400)
    return {"dataset_ids": [dataset.id for dataset in datasets]}


def _models(parts: Parts, body: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if llm_id := body.get("llm_id"):
        if not _exists(parts, llm_id, "chat"):
            raise ApiError(102, f"`llm_id` {llm_id} doesn't exist", 404)
        values["llm_id"] = llm_id
    if tenant_llm_id := body.get("tenant_llm_id"):
        if not _exists(parts, tenant_llm_id, "chat"):
            raise ApiError(102, "`tenant_llm_id` must be a valid tenant model id")
        values.setdefault("llm_id", tenant_llm_id)
    for key in ("rerank_id", "tenant_rerank_id"):
        rerank_id = body.get(key)
        if rerank_id and rerank_id not in RERANKERS_ALWAYS_TAKEN and not _exists(parts, rerank_id, "rerank"):
            raise ApiError(102, f"`rerank_id` {rerank_id} doesn't exist", 404)
        if rerank_id or key == "rerank_id" in body:
            values.setdefault("rerank_id", rerank_id or "")
    return values


def _exists(parts: Parts, model: Any, kind: Literal["chat", "rerank"]) -> bool:
    try:
        parts.models.resolve(str(model), kind)
    except NotFound:
        return False
    return isinstance(model, str)


def _prompt_config(body: Mapping[str, Any], current: DialogRecord | None, mode: Mode) -> dict[str, Any]:
    config = body.get("prompt_config")
    if config is None and mode != "create":
        return {}
    config = {} if config is None else config
    if not isinstance(config, dict):
        raise ApiError(102, "`prompt_config` should be an object.")
    if mode == "merge" and current is not None:
        config = {**current.prompt_config, **config}
    if mode == "create":
        config = {**PROMPT_DEFAULTS, **config}
        config["system"] = config["system"] or SYSTEM
    if isinstance(config.get("parameters"), list):
        config = config | {"parameters": _parameters(config["parameters"])}
    return {"prompt_config": config}


def _parameters(parameters: list[Any]) -> list[Any]:
    """The parameters with `date` among them. Raises `ApiError` for a key that is there twice."""
    keys = [parameter.get("key") for parameter in parameters if isinstance(parameter, dict)]
    for key in keys:
        if keys.count(key) > 1:
            raise ApiError(102, f"`parameters` contains duplicate key: {key}")
    return parameters if "date" in keys else [*parameters, DATE_PARAMETER]


def _llm_setting(body: Mapping[str, Any], current: DialogRecord | None, mode: Mode) -> dict[str, Any]:
    setting = body.get("llm_setting")
    if setting is None:
        return {}
    if not isinstance(setting, dict):
        raise ApiError(102, "`llm_setting` should be an object.")
    return {"llm_setting": {**current.llm_setting, **setting} if mode == "merge" and current is not None else setting}


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in TEXTS:
        if (text := body.get(key)) is not None:
            if not isinstance(text, str):
                raise ApiError(101, f"`{key}` should be a string")
            if len(text) > TEXT_CHARACTERS:
                raise ApiError(101, f"`{key}` exceeds {TEXT_CHARACTERS} characters")
            values[key] = text
    for key, kind in NUMBERS.items():
        if body.get(key) is not None:
            values[key] = _number(body[key], kind)
    if (condition := body.get("meta_data_filter")) is not None:
        if not isinstance(condition, dict):
            raise ApiError(101, "`meta_data_filter` should be an object")
        values["meta_data_filter"] = condition
    return values


def _number(value: Any, kind: type[int] | type[float]) -> float:
    """The number; 0 for what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return kind(0)
    return kind(max(-WHOLE_LIMIT, min(WHOLE_LIMIT, number))) if abs(number) < float("inf") else kind(0)


def _modern(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body with the keys of older clients, `llm`, `prompt` and `avatar`, under their present names."""
    new = dict(body)
    if isinstance(llm := new.pop("llm", None), dict) and not {"llm_id", "llm_setting"} & new.keys():
        setting = dict(llm)
        if model := setting.pop("model_name", None):
            new["llm_id"] = model
        new["llm_setting"] = setting
    if isinstance(prompt := new.pop("prompt", None), dict) and "prompt_config" not in new:
        new["prompt_config"] = {key: prompt[old] for old, key in OLD_PROMPT_KEYS.items() if old in prompt}
        for key in ("similarity_threshold", "top_n", "top_k"):
            if key in prompt:
                new.setdefault(key, prompt[key])
        if "rerank_model" in prompt:
            new.setdefault("rerank_id", prompt["rerank_model"])
        if "keywords_similarity_weight" in prompt:
            new.setdefault("vector_similarity_weight", 1 - _number(prompt["keywords_similarity_weight"], float))
    if "avatar" in new and "icon" not in new:
        new["icon"] = new["avatar"]
    return new
