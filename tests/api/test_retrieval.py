"""POST /retrieval (contract, 7) and Dify's external knowledge (14)."""

from typing import Any
from urllib.parse import quote

import orjson
import pytest

from rag.errors import ProviderUnreachable
from rag.types import ChatMessage, ChatOptions, ChatReply
from tests.api.conftest import UNKNOWN, Server

MALFORMED = "invalid or malformed arguments: top_k must be integer and score_threshold must be numeric; "
LINES = [f"Water fact number {number} about rivers." for number in range(40)]


@pytest.fixture
async def dataset(api: Server) -> str:
    dataset = await api.dataset()
    await api.parsed(dataset, "water.txt", "\n".join(LINES).encode())
    await api.parsed(dataset, "iron.txt", b"Iron melts at 1538 degrees.")
    return dataset


async def ask(api: Server, dataset: str, question: str = "water rivers", **more: Any) -> Any:
    return await api.call("POST", "/retrieval", {"dataset_ids": [dataset], "question": question, **more})


async def test_a_chunk_found_has_every_field_of_the_contract(api: Server, dataset: str) -> None:
    data = (await ask(api, dataset, "iron", highlight=True)).data
    chunk = data["chunks"][0]
    assert set(chunk) == {
        "id", "content", "content_ltks", "document_id", "document_keyword", "dataset_id", "important_keywords", "tag_kwd", "image_id",
        "similarity", "vector_similarity", "term_similarity", "positions", "doc_type_kwd", "mom_id", "row_id", "highlight",
    }  # fmt: skip
    assert (chunk["document_keyword"], chunk["dataset_id"]) == ("iron.txt", dataset)
    assert chunk["highlight"] == "<em>Iron</em> melts at 1538 degrees."
    expected = 0.7 * chunk["term_similarity"] + 0.3 * chunk["vector_similarity"]
    assert chunk["similarity"] == pytest.approx(expected, abs=1e-5)
    assert data["doc_aggs"][0] == {"doc_name": "iron.txt", "doc_id": chunk["document_id"], "count": 1}


@pytest.mark.parametrize("weight", [0, 0.3, 1, 1.5])
async def test_pages_are_slices_of_one_stable_list(api: Server, dataset: str, weight: float) -> None:
    whole = (await ask(api, dataset, page_size=100, vector_similarity_weight=weight)).data
    assert whole["total"] >= 40
    for page_size in (1, 7, 30):
        pages = [
            (await ask(api, dataset, page=page, page_size=page_size, vector_similarity_weight=weight)).data
            for page in range(1, whole["total"] // page_size + 2)
        ]
        assert [chunk["id"] for page in pages for chunk in page["chunks"]] == [chunk["id"] for chunk in whole["chunks"]]
        assert {page["total"] for page in pages} == {whole["total"]}
        assert all(page["doc_aggs"] == whole["doc_aggs"] for page in pages)


async def test_documents_and_metadata_narrow_the_search(api: Server, dataset: str) -> None:
    docs = {doc["name"]: doc["id"] for doc in (await api.call("GET", f"/datasets/{dataset}/documents")).data["docs"]}
    await api.call("PATCH", f"/datasets/{dataset}/documents/{docs['iron.txt']}", {"meta_fields": {"kind": "metal", "year": 2024}})

    async def found(**more: Any) -> set[str]:
        data = (await ask(api, dataset, "water iron melts", similarity_threshold=0, **more)).data
        return {chunk["document_keyword"] for chunk in data["chunks"]}

    metal = {"conditions": [{"name": "kind", "comparison_operator": "is", "value": "METAL"}]}
    assert await found(document_ids=[docs["water.txt"]]) == {"water.txt"}
    assert await found(metadata_condition=metal) == {"iron.txt"}
    assert await found(document_ids=[docs["water.txt"]], metadata_condition=metal) == {"water.txt"}
    assert await found(metadata_condition={}) == {"water.txt", "iron.txt"}
    nothing = {"total": 0, "chunks": [], "doc_aggs": {}}
    assert (await ask(api, dataset, metadata_condition={"conditions": []})).data == nothing
    assert (await ask(api, dataset, "  ")).data == nothing
    shown = await ask(api, dataset, "iron", document_ids=[docs["iron.txt"]], reference_metadata={"include": True, "fields": ["year"]})
    assert shown.data["chunks"][0]["document_metadata"] == {"year": 2024}
    shown = await ask(api, dataset, "iron", document_ids=[docs["iron.txt"]], include_metadata=True)
    assert shown.data["chunks"][0]["document_metadata"] == {"kind": "metal", "year": 2024}


async def test_explain_adds_times_and_scores_by_arm(api: Server, dataset: str) -> None:
    plain, explained = (await ask(api, dataset, "iron")).data, (await ask(api, dataset, "iron", explain=True)).data
    assert "timings" not in plain
    assert {"embed", "search", "fuse", "fetch", "total"} <= set(explained["timings"])
    detail = explained["chunks"][0]["explain"]
    assert (detail["text_rank"], detail["vector_rank"]) == (0, 0)
    assert detail["bm25"] > 0
    assert 0 < detail["cosine"] <= 1


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (102, 400, "`dataset_ids` is required.")),
        ({"dataset_ids": []}, (102, 400, "`dataset_ids` is required.")),
        ({"dataset_ids": "x"}, (102, 400, "`dataset_ids` should be a list")),
        ({"dataset_ids": [UNKNOWN]}, (102, 404, f"You don't own the dataset {UNKNOWN}.")),
        ({"question": None}, (102, 400, "`question` is required.")),
        ({"question": 1}, (101, 400, "`question` should be a string")),
        ({"document_ids": "x"}, (102, 400, "`documents` should be a list")),
        ({"document_ids": [UNKNOWN]}, (102, 404, f"The datasets don't own the document {UNKNOWN}")),
        ({"top_k": 0}, (102, 400, "`top_k` must be greater than 0")),
        ({"top_k": -1}, (102, 400, "`top_k` must be greater than 0")),
        ({"top_k": "x"}, (101, 400, "`top_k` should be a number")),
        ({"top_k": 1.5}, (101, 400, "`top_k` should be an integer")),
        ({"highlight": "yes"}, (102, 400, "`highlight` should be a boolean")),
        ({"highlight": 1}, (102, 400, "`highlight` should be a boolean")),
        ({"highlight": []}, (102, 400, "`highlight` should be a boolean")),
        ({"page": "x"}, (101, 400, "`page` should be a number")),
        ({"page_size": 101}, (101, 400, "page_size must be less than or equal to 100")),
        ({"similarity_threshold": "high"}, (101, 400, "`similarity_threshold` should be a number")),
        ({"vector_similarity_weight": True}, (101, 400, "`vector_similarity_weight` should be a number")),
        ({"cross_languages": "French"}, (101, 400, "`cross_languages` should be a list")),
        ({"metadata_condition": []}, (101, 400, "`metadata_condition` should be an object")),
        ({"explain": "x"}, (101, 400, "`explain` should be a boolean")),
        ({"reference_metadata": 3}, (101, 400, "`reference_metadata` should be an object")),
        ({"reference_metadata": {"include": 1}}, (101, 400, "`include` should be a boolean")),
        ({"reference_metadata": {"include": True, "fields": "x"}}, (101, 400, "`fields` should be a list of strings")),
        ({"reference_metadata": {"include": True, "fields": [1]}}, (101, 400, "`fields` should be a list of strings")),
        ({"rerank_id": "nobody"}, (102, 404, "Model nobody not found for model rerank")),
    ],
)
async def test_a_question_that_does_not_fit_is_refused(
    api: Server, dataset: str, body: dict[str, Any], outcome: tuple[int, int, str]
) -> None:
    whole = {"dataset_ids": [dataset], "question": "water"} | body if body and "dataset_ids" not in body else body
    answer = await api.call("POST", "/retrieval", whole)
    assert answer.outcome == outcome
    assert "data" not in answer.body


IS = {"name": "kind", "comparison_operator": "is", "value": "metal"}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"conditions": {"name": "kind"}}, "`metadata_condition.conditions` must be a list"),
        ({"conditions": [IS, "kind is metal"]}, "`metadata_condition.conditions[1]` must be an object"),
        ({"conditions": [{"name": "kind", "value": 1}]}, "`metadata_condition.conditions[0].comparison_operator` is missing"),
        ({"conditions": [IS | {"name": {}}]}, "`metadata_condition.conditions[0].name` must be a string or a list of strings"),
        ({"conditions": [IS], "logic": "xor"}, '`metadata_condition.logic` must be "and" or "or"'),
        (
            {"conditions": [IS | {"comparison_operator": "like"}]},
            "`metadata_condition.conditions[0].comparison_operator` must be one of is, not is, >, <, >=, <=, contains, not contains, in, "
            "not in, start with, end with, empty, not empty",
        ),
    ],
)
async def test_a_condition_of_a_wrong_shape_is_refused_wherever_it_stands(api: Server, dataset: str, condition: Any, message: str) -> None:
    chat = (await api.call("POST", "/chats", {"name": "chat"})).data["id"]
    question = {"model": "model", "messages": [{"role": "user", "content": "x"}], "metadata_condition": condition}
    query = f"metadata_condition={quote(orjson.dumps(condition).decode())}"
    selected = {"selector": {"metadata_condition": condition}}
    for answer in (
        await ask(api, dataset, metadata_condition=condition),
        await api.call("POST", "/dify/retrieval", {"knowledge_id": dataset, "query": "x", "metadata_condition": condition}),
        await api.call("GET", f"/datasets/{dataset}/documents?{query}"),
        await api.call("POST", f"/datasets/{dataset}/metadata/update", selected),
    ):
        assert answer.outcome == (101, 400, message)
    openai = await api.call("POST", f"/openai/{chat}/chat/completions", question)
    assert (openai.status, openai.body["message"] if "message" in openai.body else openai.body["error"]["message"]) == (400, message)


async def test_a_condition_may_name_several_keys(api: Server, dataset: str) -> None:
    iron = (await api.call("GET", f"/datasets/{dataset}/documents?name=iron.txt")).data["docs"][0]["id"]
    (await api.call("PATCH", f"/datasets/{dataset}/documents/{iron}", {"meta_fields": {"kind": "metal"}})).data  # noqa: B018
    condition = {"conditions": [IS | {"name": ["sort", "kind"]}]}
    answer = await api.call("POST", "/dify/retrieval", {"knowledge_id": dataset, "query": "iron", "metadata_condition": condition})
    assert {record["title"] for record in answer.body["records"]} == {"iron.txt"}


async def test_a_reranker_that_fails_costs_neither_the_answer_nor_the_reason(api: Server, dataset: str) -> None:
    plain = await ask(api, dataset)
    answer = await ask(api, dataset, rerank_id="reader@Sim")
    assert answer.data["degraded"] == ["rerank"]
    assert "reader@Sim" in answer.data["reasons"]["rerank"]
    assert [chunk["id"] for chunk in answer.data["chunks"]] == [chunk["id"] for chunk in plain.data["chunks"]]


async def test_numbers_as_text_and_text_as_booleans_are_fine(api: Server, dataset: str) -> None:
    answer = await ask(api, dataset, page="1", page_size="2", top_k="10", similarity_threshold="0.1", highlight="true", page_number=1)
    assert len(answer.data["chunks"]) == 2
    assert answer.data["chunks"][0]["highlight"]


async def test_datasets_must_share_their_model(api: Server, dataset: str) -> None:
    other, alias = await api.dataset("other", embedding_model="other@Sim"), await api.dataset("alias", embedding_model="friend")
    answer = await api.call("POST", "/retrieval", {"dataset_ids": [dataset, other], "question": "x"})
    assert answer.outcome == (102, 400, "Datasets use different embedding models: ['all-MiniLM-L6-v2@Local', 'other@Sim']")
    assert (await api.call("POST", "/retrieval", {"dataset_ids": [dataset, alias], "question": "water"})).data["total"] > 0


async def test_help_that_no_model_can_give_is_named(api: Server, dataset: str) -> None:
    data = (await ask(api, dataset, "iron", keyword=1, cross_languages=["German"])).data
    assert data["degraded"] == ["cross_languages", "keyword"]
    assert data["total"] > 0


async def test_the_chat_model_adds_keywords_and_translations(api: Server, dataset: str) -> None:
    class Clever:
        name, context_tokens = "clever", 100

        async def complete(self, messages: list[ChatMessage], options: ChatOptions) -> ChatReply:
            return ChatReply("iron" if "Translate" in messages[0].content else "melts, degrees")

    api.parts.models.chat = lambda name=None: Clever()  # type: ignore[method-assign, assignment, return-value]
    assert (await ask(api, dataset, "Eisen", cross_languages=["English"], vector_similarity_weight=0)).data["total"] == 1
    assert (await ask(api, dataset, "Ferrum", keyword=True, vector_similarity_weight=0)).data["total"] == 1


async def test_an_embedder_that_fails_leaves_the_words(api: Server, dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: Any) -> None:
        raise ProviderUnreachable("vectors@Sim does not answer")

    monkeypatch.setattr("tests.api.conftest.CountedWords.embed_query", unreachable)
    monkeypatch.setattr(type(api.parts.models.embedder()), "embed_query", unreachable)
    data = (await ask(api, dataset, "iron")).data
    assert (data["degraded"], data["total"]) == (["embed"], 1)


# ---------------------------------------------------------------------------------------------------- Dify
async def test_dify_gets_records_by_post_and_get(api: Server, dataset: str) -> None:
    body = {"knowledge_id": dataset, "query": "iron", "retrieval_setting": {"top_k": 1, "score_threshold": 0.1}}
    posted = await api.call("POST", "/dify/retrieval", body)
    assert posted.status == 200
    record = posted.body["records"][0]
    assert (record["content"], record["title"]) == ("Iron melts at 1538 degrees.", "iron.txt")
    assert record["metadata"]["doc_id"] == record["metadata"]["document_id"]
    got = await api.call("GET", f"/dify/retrieval?knowledge_id={dataset}&query=iron&top_k=1&score_threshold=0.1")
    assert got.body == posted.body


async def test_dify_filters_by_metadata(api: Server, dataset: str) -> None:
    condition = {"logic": "and", "conditions": [{"name": "kind", "comparison_operator": "is", "value": "metal"}]}
    answer = await api.call("POST", "/dify/retrieval", {"knowledge_id": dataset, "query": "iron", "metadata_condition": condition})
    assert answer.body == {"records": []}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({}, (101, 400, "required arguments are missing: knowledge_id,query; ")),
        ({"knowledge_id": "x"}, (101, 400, "required arguments are missing: query; ")),
        ({"retrieval_setting": {"top_k": "x"}}, (101, 400, MALFORMED)),
        ({"retrieval_setting": []}, (404, 404, "Knowledgebase not found!")),
        ({"retrieval_setting": "x"}, (101, 400, MALFORMED)),
        ({"knowledge_id": UNKNOWN, "query": "x"}, (404, 404, "Knowledgebase not found!")),
    ],
)  # fmt: skip
async def test_dify_errors(api: Server, body: dict[str, Any], outcome: tuple[int, int, str]) -> None:
    whole = {"knowledge_id": UNKNOWN, "query": "x"} | body if "retrieval_setting" in body else body
    answer = await api.call("POST", "/dify/retrieval", whole)
    assert answer.outcome == outcome
    assert set(answer.body) == {"code", "message"}


async def test_dify_health_is_public(api: Server) -> None:
    response = await api.client.get("/api/v1/dify/retrieval/health")
    assert await response.get_json() == {"code": 0, "data": True, "message": "success"}
    assert (await api.client.get(f"/api/v1/dify/retrieval?query={quote('x')}")).status_code == 401
