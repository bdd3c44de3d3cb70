"""The route table: a blueprint whose routes also say what they take and answer, for `/openapi.json` and for the error table.

    api = Routes("dataset")

    @api.route("POST", "/datasets", body=DatasetCreate, data=DatasetReply)
    async def create_dataset() -> Response:
        \"\"\"Create a dataset.\"\"\"

Rules are relative to `/api/v1` (`base=""` puts a blueprint at the server's root). Several methods are given as "PATCH PUT",
aliases as further rules; the first rule is the one that documentation shows. The first line of the handler's docstring is
the route's summary. `kind` chooses the envelope of errors (see api/errors.py). `public` routes take no key. `stream` lifts
the overall deadline of a request. A new blueprint is added to `BLUEPRINTS` in api/app.py, and that is all.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from quart import Blueprint
from quart.typing import ResponseReturnValue

BASE = "/api/v1"

Kind = Literal["R", "J", "D", "OpenAI"]
Handler = Callable[..., Awaitable[ResponseReturnValue]]


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """One route as callers see it. `rules` are full paths, the first the canonical one."""

    endpoint: str
    methods: tuple[str, ...]
    rules: tuple[str, ...]
    tag: str
    summary: str
    kind: Kind
    public: bool
    stream: bool
    body: type[BaseModel] | None
    query: type[BaseModel] | None
    data: Any
    content_type: str
    reply_type: str


class Routes(Blueprint):
    """A blueprint of documented routes."""

    def __init__(self, name: str, *, base: str = BASE, kind: Kind = "R") -> None:
        super().__init__(name, __name__, url_prefix=base or None)
        self.base = base
        self.kind = kind
        self.specs: list[RouteSpec] = []

    def route(  # type: ignore[override]
        self,
        methods: str,
        *rules: str,
        kind: Kind | None = None,
        public: bool = False,
        stream: bool = False,
        body: type[BaseModel] | None = None,
        query: type[BaseModel] | None = None,
        data: Any = None,
        content_type: str = "application/json",
        reply_type: str = "application/json",
    ) -> Callable[[Handler], Handler]:
        """Register the handler under every rule. `data` is the type of the answer's `data` (a model, or any annotation)."""

        def register(handler: Handler) -> Handler:
            name = handler.__name__
            spec = RouteSpec(
                endpoint=f"{self.name}.{name}",
                methods=tuple(methods.split()),
                rules=tuple(self.base + rule for rule in rules),
                tag=self.name,
                summary=(handler.__doc__ or name).strip().splitlines()[0].rstrip("."),
                kind=kind or self.kind,
                public=public,
                stream=stream,
                body=body,
                query=query,
                data=data,
                content_type=content_type,
                reply_type=reply_type,
            )
            self.specs.append(spec)
            for rule in rules:
                self.add_url_rule(rule, name, handler, methods=list(spec.methods))
            return handler

        return register
