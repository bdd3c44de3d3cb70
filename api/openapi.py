"""`/openapi.json`, made from the route table and the request and answer models, and `/docs`, a page that shows it.

A route takes part by being declared through `api.routes.Routes`; a test compares the document with the app's url map.
"""

import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter
from quart import Response, current_app

from api.context import parts
from api.respond import JSON_TYPE
from api.routes import Routes, RouteSpec

REF = "#/components/schemas/{model}"
PAGE = Path(__file__).with_name("static") / "docs.html"
VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
KINDS = {"R": ("code",), "J": ("code", "message")}

api = Routes("docs", base="", kind="J")


@api.route("GET", "/openapi.json", public=True)
async def openapi_document() -> Response:
    """This document."""
    made = current_app.extensions.get("openapi")
    if made is None:  # takes 60 ms, and stays as it is
        specs = tuple(current_app.specs.values())  # type: ignore[attr-defined]
        made = current_app.extensions["openapi"] = await parts().lanes.search.run(_encoded, specs)
    return Response(made, content_type=JSON_TYPE)


@api.route("GET", "/docs", public=True, reply_type="text/html")
async def docs_page() -> Response:
    """A page that shows this document."""
    return Response(PAGE.read_bytes(), content_type="text/html; charset=utf-8")


def _encoded(specs: Iterable[RouteSpec]) -> bytes:
    return orjson.dumps(document(specs))


def document(specs: Iterable[RouteSpec]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for spec in specs:
        for position, rule in enumerate(spec.rules):
            for method in spec.methods:
                operation = _operation(spec, rule, method, schemas, alias=position > 0)
                paths.setdefault(VARIABLE.sub(r"{\1}", rule), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Millrace", "version": version("millrace"), "description": "Upload documents, search them, chat over them."},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, `ragflow-…`."}},
        },
    }


def _operation(spec: RouteSpec, rule: str, method: str, schemas: dict[str, Any], *, alias: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}{rule}").strip("_"),
        "summary": spec.summary,
        "tags": [spec.tag],
        "parameters": [_path_parameter(name) for name in VARIABLE.findall(rule)] + _query_parameters(spec, schemas),
        "responses": {
            "200": {"description": "success", "content": {spec.reply_type: {"schema": _reply(spec, schemas)}}},
            "default": {"description": "failure", "content": {"application/json": {"schema": _failure(spec)}}},
        },
        "security": [] if spec.public else [{"key": []}],
    }
    if alias:
        operation["deprecated"] = True
        operation["description"] = _alias_text(spec)
    if spec.body is not None:
        operation["requestBody"] = {"content": {spec.content_type: {"schema": _schema(spec.body, schemas)}}}
    return operation


def _alias_text(spec: RouteSpec) -> str:
    canonical = VARIABLE.sub(r"{\1}", spec.rules[0])
    return f"Alias of `{canonical}`."


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(spec: RouteSpec, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if spec.query is None:
        return []
    schema = spec.query.model_json_schema(ref_template=REF)
    schemas |= schema.pop("$defs", {})
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": value} for name, value in schema.get("properties", {}).items()
    ]


def _schema(annotation: Any, schemas: dict[str, Any], mode: str = "validation") -> dict[str, Any]:
    schema = TypeAdapter(annotation).json_schema(ref_template=REF, mode=mode)  # type: ignore[arg-type]
    for name, value in schema.pop("$defs", {}).items():
        schemas[name] = value
    if schema.get("type") == "object" and "title" in schema and "properties" in schema:
        schemas[schema["title"]] = schema
        return {"$ref": REF.format(model=schema["title"])}
    return schema


def _reply(spec: RouteSpec, schemas: dict[str, Any]) -> dict[str, Any]:
    data = {} if spec.data is None else _schema(spec.data, schemas, "serialization")
    if spec.kind not in KINDS or spec.reply_type != "application/json":
        return data
    properties: dict[str, Any] = {"code": {"const": 0}}
    if spec.data is not None or spec.kind == "J":
        properties["data"] = data
    if spec.kind == "J":
        properties["message"] = {"type": "string"}
    return {"type": "object", "required": list(KINDS[spec.kind]), "properties": properties}


def _failure(spec: RouteSpec) -> dict[str, Any]:
    if spec.kind == "OpenAI":
        fields = {name: {} for name in ("message", "type", "code", "param")}
        return {"type": "object", "properties": {"error": {"type": "object", "properties": fields}}}
    properties = {"code": {"type": "integer"}, "message": {"type": "string"}} | ({"data": {}} if spec.kind == "J" else {})
    return {"type": "object", "required": ["code", "message"], "properties": properties}
