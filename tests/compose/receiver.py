"""The stand-in for Jaeger: takes OTLP over HTTP where Jaeger does, and tells what came at /traces."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PORT = 4318

_spans: list[dict[str, Any]] = []
_lock = threading.Lock()


def taken(body: bytes) -> list[dict[str, Any]]:
    """What the test asks of a span; a body that is not OTLP raises."""
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                assert (len(span.trace_id), len(span.span_id)) == (16, 8), "not ids"
                assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano, "not times"
                found.append(
                    {
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "name": span.name,
                        "service": attributes.get("service.name", ""),
                        "links": [link.span_id.hex() for link in span.links],
                    }
                )
    return found


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/traces" or self.headers["content-type"] != "application/x-protobuf":
            self._answer(415, b"")
            return
        try:
            found = taken(body)
        except Exception as error:
            print(f"refused: {error!r}", file=sys.stderr, flush=True)
            self._answer(400, b"")
            return
        with _lock:
            _spans.extend(found)
        self._answer(200, ExportTraceServiceResponse().SerializeToString(), "application/x-protobuf")

    def do_GET(self) -> None:
        with _lock:
            body = json.dumps(_spans).encode()
        self._answer(200, body, "application/json")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
