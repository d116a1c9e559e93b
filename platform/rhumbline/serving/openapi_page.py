"""/openapi.json and /docs: every route with every status it may answer, as data and as a page without scripts.

FastAPI's own page loads its viewer from another host, which an air-gapped network lacks and our content policy forbids.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from jinja2 import Environment
from starlette.responses import HTMLResponse

from rhumbline import __version__
from rhumbline.serving.edge import OPEN

_BEARER = "key"
_UNUSED = ("HTTPValidationError", "ValidationError")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ title }}</title></head>
<body><main><h1>{{ title }}</h1><p>{{ about }}</p><p><a href="openapi.json">The same as JSON (OpenAPI {{ version }})</a></p>
{% for path, methods in paths.items() %}{% for method, route in methods.items() %}
<section><h2><code>{{ method.upper() }} {{ path }}</code></h2><p>{{ route.summary }}</p>
{% if route.parameters %}<h3>Parameters</h3><ul>{% for one in route.parameters %}
<li><code>{{ one.name }}</code> ({{ one.in }}) {{ one.description }}</li>{% endfor %}</ul>{% endif %}
{% if route.requestBody %}<h3>Body</h3><pre>{{ route.requestBody | shown }}</pre>{% endif %}
<h3>Answers</h3><dl>{% for status, one in route.responses.items() %}
<dt>{{ status }}</dt><dd>{{ one.description }}</dd>{% endfor %}</dl></section>
{% endfor %}{% endfor %}
<h2>Schemas</h2>{% for name, schema in schemas.items() %}
<details><summary><code>{{ name }}</code></summary><pre>{{ schema | shown }}</pre></details>{% endfor %}
</main></body></html>
"""


def install(app: FastAPI, public: frozenset[str]) -> None:
    """Let the app describe itself; `public` are the paths besides edge.OPEN that need no key."""
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(_describe(app, OPEN | public))
        return described

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(openapi()))


def _describe(app: FastAPI, public: frozenset[str]) -> dict[str, Any]:
    found = get_openapi(
        title=app.title, version=__version__, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    components = found.setdefault("components", {})
    components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    for path, methods in found["paths"].items():
        for route in methods.values():
            route["responses"].pop("422", None)  # FastAPI's own validation answer; ours is a 400
            route["security"] = [] if path in public else [{_BEARER: []}]
    for name in _UNUSED:
        components.get("schemas", {}).pop(name, None)
    return found


def _page(described: dict[str, Any]) -> str:
    environment = Environment(autoescape=True)
    environment.filters["shown"] = lambda value: json.dumps(value, indent=1)
    return environment.from_string(_PAGE).render(
        title=described["info"]["title"],
        about=described["info"].get("description", ""),
        version=described["openapi"],
        paths=described["paths"],
        schemas=described["components"].get("schemas", {}),
    )
