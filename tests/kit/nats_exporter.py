"""What NATS' Prometheus exporter tells with `-varz -jsz=all`, for where its image is not to be had.

The numbers are those of a real server's monitoring port, and only the names are ours to get wrong. They are
those of the exporter's collector/jsz.go and of its rule for varz: `gnatsd_varz_` and the field.
"""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import urlopen

from millrace.metrics import CONTENT_TYPE, Family, Labels, text

SERVER = {
    "jetstream_server_total_streams": "streams",
    "jetstream_server_total_consumers": "consumers",
    "jetstream_server_total_messages": "messages",
    "jetstream_server_total_message_bytes": "bytes",
    "jetstream_server_max_storage": "config.max_storage",
}
STREAM = {
    "jetstream_stream_total_messages": "state.messages",
    "jetstream_stream_total_bytes": "state.bytes",
    "jetstream_stream_last_seq": "state.last_seq",
    "jetstream_stream_consumer_count": "state.consumer_count",
}
CONSUMER = {
    "jetstream_consumer_delivered_consumer_seq": "delivered.consumer_seq",
    "jetstream_consumer_num_ack_pending": "num_ack_pending",
    "jetstream_consumer_num_redelivered": "num_redelivered",
    "jetstream_consumer_num_waiting": "num_waiting",
    "jetstream_consumer_num_pending": "num_pending",
}
VARZ = (
    *("connections", "subscriptions", "slow_consumers", "cpu", "mem"),
    *("in_msgs", "in_bytes", "out_msgs", "out_bytes"),
)

NAMES = {*SERVER, *STREAM, *CONSUMER, *(f"gnatsd_varz_{field}" for field in VARZ)}


def families(varz: dict[str, Any], jsz: dict[str, Any]) -> list[Family]:
    made = {name: Family(name, "gauge", "As NATS tells it.") for name in NAMES}

    def add(table: dict[str, str], labels: Labels, said: dict[str, Any]) -> None:
        for name, path in table.items():
            value: Any = said
            for key in path.split("."):
                value = value[key]
            made[name].samples.append((labels, float(value)))

    server = {"server_id": varz["server_id"]}
    add({f"gnatsd_varz_{field}": field for field in VARZ}, server, varz)
    server = {**server, "server_name": varz["server_name"]}
    add(SERVER, server, jsz)
    for account in jsz["account_details"]:
        for stream in account["stream_detail"]:
            own = {**server, "account": account["name"], "stream_name": stream["name"]}
            add(STREAM, own, stream)
            for consumer in stream.get("consumer_detail", ()):
                add(CONSUMER, {**own, "consumer_name": consumer["name"]}, consumer)
    return list(made.values())


@contextmanager
def exporting(monitor: str, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The address, host:port, where the numbers of that server are told."""

    def got(path: str) -> dict[str, Any]:
        with urlopen(f"{monitor}{path}", timeout=5) as reply:
            return dict(json.load(reply))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text(families(got("/varz"), got("/jsz?consumers=true&config=true")))
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE.decode())
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # in a container, with the exporter's own arguments
    with exporting(sys.argv[-1], "0.0.0.0", 7777):
        signal.pause()
