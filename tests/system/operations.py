"""One request of every operation in OpenAI's description of its API, as bytes.

`operations.json` is the table: method, path, query, kind and content of one plausible request for each operation, and
a second one with `stream` where the operation streams. It is made from `openapi.yaml` by this file, run as a program:

    python tests/system/operations.py path/to/openapi.yaml

and kept beside it, so that tests need no description at hand. What the bytes on the wire look like (spacing, escapes,
boundaries, parameters that only a raw comparison tells apart) is decided here and not kept: see `Sample.request`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

TABLE = Path(__file__).with_name("operations.json")
METHODS = ("post", "put", "patch", "get", "delete")  # an object is made before it is read, and read before it is gone
MODEL = "gpt-5.6"
MODELS = {
    "/embeddings": "text-embedding-3-small",
    "/images/": "gpt-image-1",
    "/audio/speech": "gpt-4o-mini-tts",
    "/audio/": "gpt-4o-transcribe",
    "/moderations": "omni-moderation-latest",
    "/realtime": "gpt-realtime",
    "/videos": "sora-2",
}
OPTIONAL = 3  # members of a body beyond the required ones
DEPTH = 6

BOUNDARY = "--=_Part 7'()+_,-./:?"  # every kind of character RFC 2046 §5.1.1 allows
FILE = bytes(range(256)) + b"\r\n--not-the-boundary--\r\n" + bytes(reversed(range(256)))
SDP = b"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"


class Sample(NamedTuple):
    """One request, not yet written down as bytes."""

    name: str
    method: str
    path: str  # with {parameters}, below /v1
    query: str  # raw, without the question mark
    kind: str  # json, form, sdp, or none
    content: Any

    def __repr__(self) -> str:
        return f"<Sample {self.name}: {self.method} {self.path} {self.kind}>"

    def target(self, ids: dict[str, str]) -> str:
        """The request target, with ids put in; one that is not given is made up from its name."""
        path = self.path
        while "{" in path:
            before, _, rest = path.partition("{")
            name, _, after = rest.partition("}")
            path = f"{before}{ids.get(name, f'{name[:4]}_0%2B1-{name}')}{after}"
        return f"/v1{path}?{self.query}" if self.query else f"/v1{path}"

    def payload(self) -> tuple[str, bytes]:
        """Content type and body; two empty ones where there is none."""
        if self.kind == "json":
            return "application/json; charset=utf-8", odd_json(self.content)
        if self.kind == "form":
            return f'multipart/form-data; boundary="{BOUNDARY}"', form(self.content)
        if self.kind == "sdp":
            return "application/sdp", SDP
        return "", b""


def odd_json(document: Any) -> bytes:
    """JSON that no serializer would write again alike: spacing, an escape, a figure's spelling, an unknown member."""
    plain = json.dumps(document, indent=3, ensure_ascii=False, separators=(" ,", " : "))
    if not isinstance(document, dict):
        return plain.encode()
    odd = '"x_unknown" :{ "é\\u00e9\\/" : 1.0e+02, "z":[ ] }'
    inner = plain[1:-1].rstrip()
    return ("{" + odd + ("," + inner if inner else "") + "\n}\n").encode()


def form(fields: list[list[str]]) -> bytes:
    """A multipart body: a field nobody knows first, then files (`[name, filename]`) and texts (`[name, "", text]`) as
    listed, with odd headers."""
    mark = f"--{BOUNDARY}\r\n".encode()
    body = mark + b'content-disposition: form-data; name="x_unknown[]"\r\n\r\n\xff\x00 \r\n'
    for field in fields:
        if field[1]:
            head = f'Content-Disposition: form-data; filename="{field[1]}"; name="{field[0]}"\r\nX-Odd: 1\r\n'
            body += mark + head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + FILE + b"\r\n"
        else:
            head = f'Content-Disposition: form-data; name="{field[0]}"\r\n\r\n{field[2]}\r\n'
            body += mark + head.encode()
    return body + f"--{BOUNDARY}--\r\n".encode()


def load() -> list[Sample]:
    """Every sample of the table."""
    return [Sample(*row) for row in json.loads(TABLE.read_bytes())]


# --- making the table ------------------------------------------------------------------------------------------------


class Description:
    """OpenAI's description, as far as one request of each operation needs it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def __repr__(self) -> str:
        return f"<Description {len(self.document['paths'])} paths>"

    def look(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node itself, or what it refers to."""
        while "$ref" in node:
            found: Any = self.document
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step.replace("~1", "/").replace("~0", "~")]
            node = found
        return node

    def samples(self) -> list[Sample]:
        """In an order in which what is read has been made, and nothing is read that is gone."""
        found = []
        for method in METHODS:
            for path, item in self.document["paths"].items():
                if method in item:
                    found += self._operation(method.upper(), path, item, item[method])
        return found

    def _operation(self, method: str, path: str, item: dict[str, Any], operation: dict[str, Any]) -> list[Sample]:
        path, _, fixed = path.partition("?")
        name = operation.get("operationId", f"{method} {path}") + ("?beta" if fixed else "")
        parameters = [self.look(each) for each in [*item.get("parameters", ()), *operation.get("parameters", ())]]
        query = "&".join(
            [fixed] * bool(fixed) + [self._parameter(each) for each in parameters if each["in"] == "query"]
        )
        contents = self.look(operation.get("requestBody", {})).get("content", {})
        made = []
        for content_type, media in contents.items():
            kind = {"application/json": "json", "multipart/form-data": "form"}.get(content_type, "sdp")
            schema = self.merged(media.get("schema", {}))
            label = name if len(contents) == 1 else f"{name} ({kind})"
            made.append(Sample(label, method, path, query, kind, self._content(kind, path, schema, {})))
            for extra in _streaming(schema):
                made.append(
                    Sample(f"{label} streamed", method, path, query, kind, self._content(kind, path, schema, extra))
                )
        return made or [Sample(name, method, path, query, "none", None)]

    def _parameter(self, parameter: dict[str, Any]) -> str:
        """A query parameter as a raw comparison likes it: lists repeated, escapes as they may be."""
        name, schema = parameter["name"], self.merged(parameter.get("schema", {}))
        value = self.example(schema, name, 0)
        if isinstance(value, list):
            return "&".join(f"{name.replace('[', '%5b')}={_escaped(each)}+%20~" for each in [*value, "2"][:2])
        if isinstance(value, dict):
            return "&".join(f"{name}[{key}]={_escaped(each)}" for key, each in value.items())
        return f"{name}={_escaped(value)}"

    def _content(self, kind: str, path: str, schema: dict[str, Any], extra: dict[str, Any]) -> Any:
        if kind == "sdp":
            return None
        content = self.example(schema, "", 0) if schema else {}
        if isinstance(content, dict):
            content |= extra
            if "model" in self._properties(schema):
                content["model"] = next((model for start, model in MODELS.items() if path.startswith(start)), MODEL)
        return self._fields(schema, content) if kind == "form" else content

    def _fields(self, schema: dict[str, Any], content: dict[str, Any]) -> list[list[str]]:
        files, texts = [], []
        for name, value in content.items():
            shape = self.merged(self._properties(schema).get(name, {}))
            several = shape.get("type") == "array"
            inner = self.merged(shape.get("items", {})) if several else shape
            if self._is_file(inner):
                files.append([f"{name}[]" if several else name, f"{name}-ü.bin"])
            else:
                text = value if isinstance(value, str) else json.dumps(value)
                texts.append([name, "", text])
        return texts[:1] + files + texts[1:]  # the file in the middle

    def _is_file(self, schema: dict[str, Any]) -> bool:
        if schema.get("format") == "binary" or "contentMediaType" in schema:
            return True
        return any(self._is_file(self.merged(each)) for each in [*schema.get("oneOf", ()), *schema.get("anyOf", ())])

    # - schemas

    def merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema without references on top, its `allOf` made one."""
        schema = self.look(schema)
        if "allOf" not in schema:
            return schema
        made: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        made["properties"] = dict(schema.get("properties", {}))
        made["required"] = list(schema.get("required", ()))
        for part in map(self.merged, schema["allOf"]):
            made["properties"] |= part.get("properties", {})
            made["required"] += part.get("required", ())
            for key, value in part.items():
                made.setdefault(key, value)
        return made

    def _properties(self, schema: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = schema.get("properties", {})
        return found

    def example(self, schema: dict[str, Any], name: str, depth: int) -> Any:
        """A value the schema allows, as far as a request has to be plausible."""
        schema = self.merged(schema)
        for key in ("const", "default", "example"):
            if schema.get(key) is not None:
                return _short(schema[key])
        if schema.get("enum"):
            return schema["enum"][0]
        for key in ("oneOf", "anyOf"):
            if schema.get(key) and not schema.get("properties"):
                options = [self.merged(each) for each in schema[key]]
                return self.example(next((o for o in options if o.get("type") != "null"), {}), name, depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = next((each for each in kind if each != "null"), "null") if isinstance(kind, list) else kind
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return [] if depth >= DEPTH else [self.example(schema.get("items", {}), name, depth + 1)]
        return _scalar(kind, schema, name)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        if depth >= DEPTH:
            return {}
        properties, required = self._properties(schema), set(schema.get("required", ()))
        spare = 0 if depth else OPTIONAL
        made = {}
        for name, inner in properties.items():
            if name in ("stream", "stream_options", "stream_format"):
                continue
            if name not in required and not (name == "input" and not depth):
                if not spare:
                    continue
                spare -= 1
            made[name] = self.example(inner, name, depth + 1)
        return made


def _escaped(value: Any) -> str:
    """A value in a query, with small hexadecimals, and what need not be escaped left alone."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote(text, safe="!$'()*,;:@/?[]"))


def _scalar(kind: str, schema: dict[str, Any], name: str) -> Any:
    if kind in ("integer", "number"):
        return schema.get("minimum", 7)
    if kind == "boolean":
        return True
    return f"some {name or 'text'} — ½" if kind == "string" else None


def _short(value: Any) -> Any:
    """An example of the description's, unless it is a long text."""
    return value[:40] if isinstance(value, str) else value


def _streaming(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What to add to a body for it to be answered by events."""
    properties = schema.get("properties", {})
    if "stream_format" in properties:
        return [{"stream_format": "sse"}]
    return [{"stream": True}] if "stream" in properties else []


def rendered(path: str | Path) -> str:
    """The table of the description at `path`, as the file has it. Raises OSError."""
    import yaml

    with open(path, "rb") as file:
        description = Description(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    rows = [json.dumps(list(sample), ensure_ascii=False) for sample in description.samples()]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def main() -> int:
    text = rendered(sys.argv[1])
    TABLE.write_text(text, "utf-8")
    print(f"{text.count(chr(10)) - 2} requests, {len(text.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
