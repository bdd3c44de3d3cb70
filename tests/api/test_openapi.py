"""/openapi.json and /docs: every route of the application, from one table."""

import re
from collections.abc import Iterator
from typing import Any

from werkzeug.exceptions import HTTPException

from api.openapi import PAGE
from tests.api.conftest import Server

PUBLIC = {
    "/api/v1/system/ping", "/api/v1/system/version", "/api/v1/system/config", "/api/v1/system/healthz", "/api/v1/dify/retrieval/health",
}  # fmt: skip


async def test_every_route_of_the_application_is_documented(api: Server) -> None:
    document = (await api.call("GET", "/openapi.json", key="none")).body
    documented = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    served = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in api.app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert documented == served


async def test_the_document_is_sound(api: Server) -> None:
    document = (await api.call("GET", "/openapi.json")).body
    assert document["openapi"] == "3.1.0"
    operations = [(path, operation) for path, methods in document["paths"].items() for operation in methods.values()]
    ids = [operation["operationId"] for _, operation in operations]
    assert len(ids) == len(set(ids))
    for path, operation in operations:
        assert operation["summary"], path
        assert {item["name"] for item in operation["parameters"] if item["in"] == "path"} == set(re.findall(r"{(\w+)}", path))
    references = set(re.findall(r'"#/components/schemas/(\w+)"', (await (await api.client.get("/openapi.json")).get_data()).decode()))
    assert references <= document["components"]["schemas"].keys()


async def test_every_default_satisfies_its_own_schema(api: Server) -> None:
    document = (await api.call("GET", "/openapi.json")).body
    wrong = [(schema, fault) for schema in schemas_with_a_default(document) if (fault := fault_of(schema["default"], schema, document))]
    assert wrong == []


def schemas_with_a_default(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "default" in node and not isinstance(node["default"], dict):
            yield node
        for key, value in node.items():
            if key not in ("default", "const", "enum", "examples"):
                yield from schemas_with_a_default(value)
    elif isinstance(node, list):
        for item in node:
            yield from schemas_with_a_default(item)


def fault_of(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> str:
    """The keyword that the value breaks, "" for none."""
    if "$ref" in schema:
        return fault_of(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        faults = [fault_of(value, choice, document) for choice in schema["anyOf"]]
        return "" if "" in faults else f"anyOf: {faults}"
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict, "null": type(None)}
    size = len(value) if isinstance(value, str | list | dict) else 0
    number = value if isinstance(value, int | float) else 0
    broken = {
        "type": "type" in schema
        and (not isinstance(value, types[schema["type"]]) or isinstance(value, bool) != (schema["type"] == "boolean")),
        "const": "const" in schema and value != schema["const"],
        "enum": "enum" in schema and value not in schema["enum"],
        "minLength": isinstance(value, str) and size < schema.get("minLength", 0),
        "maxLength": isinstance(value, str) and size > schema.get("maxLength", size),
        "minItems": isinstance(value, list) and size < schema.get("minItems", 0),
        "maxItems": isinstance(value, list) and size > schema.get("maxItems", size),
        "pattern": isinstance(value, str) and not re.search(schema.get("pattern", ""), value),
        "minimum": number < schema.get("minimum", number),
        "maximum": number > schema.get("maximum", number),
        "exclusiveMinimum": "exclusiveMinimum" in schema and number <= schema["exclusiveMinimum"],
        "exclusiveMaximum": "exclusiveMaximum" in schema and number >= schema["exclusiveMaximum"],
    }
    return ", ".join(keyword for keyword, is_broken in broken.items() if is_broken)


async def test_two_models_never_share_a_name(api: Server) -> None:
    names: dict[str, object] = {}
    for spec in api.app.specs.values():
        for model in (spec.body, spec.query):
            if model is not None:
                assert names.setdefault(model.__name__, model) is model, model


async def test_public_routes_are_those_of_the_contract_and_need_no_key(api: Server) -> None:
    public = {rule for spec in api.app.specs.values() if spec.public for rule in spec.rules}
    assert public >= PUBLIC
    outside = {rule for rule in public if rule.startswith("/api/v1")} - PUBLIC
    assert outside <= {"/api/v1/v1/system/healthz", "/api/v1/language"}
    for endpoint, spec in api.app.specs.items():
        if not spec.public:
            path = re.sub(r"<[^>]+>", "0" * 32, spec.rules[0])
            response = await api.client.open(path, method=spec.methods[0])
            assert response.status_code == 401, endpoint


async def test_the_page_needs_nothing_from_elsewhere(api: Server) -> None:
    answer = await api.call("GET", "/docs", key="none")
    assert answer.body == PAGE.read_bytes()
    assert not re.search(rb"(?:src|href)=\"(?:https?:)?//|@import|url\(", answer.body)


async def test_aliases_are_routes_too(api: Server) -> None:
    adapter = api.app.url_map.bind("x")
    for spec in api.app.specs.values():
        for rule in spec.rules:
            try:
                endpoint, _ = adapter.match(re.sub(r"<[^>]+>", "x", rule), method=spec.methods[0])
            except HTTPException as error:  # pragma: no cover - the message tells the rule
                raise AssertionError(rule) from error
            assert endpoint == spec.endpoint
