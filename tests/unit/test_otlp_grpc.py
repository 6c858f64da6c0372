"""OTLP over gRPC, to a collector that speaks it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc

from millrace.metrics import SECONDS, Family, Histogram
from millrace.otel import MetricExport, Otel, SpanExport
from millrace.spans import Process, Span, new_trace

ENGINE = Process("engine", "engine_1")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What came, and OTEL_* that say where to."""
    came: list[Any] = []

    class Traces(trace_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            came.append(request)
            return trace_pb2.ExportTraceServiceResponse()

    class Metrics(metrics_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            came.append(request)
            return metrics_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(Traces(), server)  # type: ignore[no-untyped-call]
    metrics_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    yield came
    server.stop(None).wait()


def asked() -> Otel:

    return Otel.of(os.environ)


def test_spans_arrive(taken: list[Any]) -> None:
    """Grouped by the process whose they are."""
    span = Span(ENGINE, new_trace(), "prefill", 1.0, 2.0)
    SpanExport(asked())([[span]])
    (of,) = taken[0].resource_spans
    (sent,) = of.scope_spans[0].spans

    assert (span.trace, "prefill") == (sent.trace_id.hex(), sent.name)
    assert "engine_1" in {each.value.string_value for each in of.resource.attributes}


def test_metrics_arrive(taken: list[Any]) -> None:
    """Counters, gauges and histograms, with the numbers that Prometheus is told."""
    histogram = Histogram(SECONDS)
    histogram.observe(0.005, 3)
    labels = {"model_name": "sim", "replica": "gw"}
    MetricExport(asked(), ENGINE)(
        [
            [
                Family("n", "counter", "N.", [({}, 7)]),
                Family("g", "gauge", "G.", [({}, 0.5)]),
                Family("vllm:time_to_first_token_seconds", "histogram", "T.", [(labels, histogram)]),
            ]
        ]
    )
    found = {metric.name: metric for metric in taken[0].resource_metrics[0].scope_metrics[0].metrics}
    spread = found["gen_ai.server.time_to_first_token"].histogram.data_points[0]

    assert (7.0, 0.5) == (found["n"].sum.data_points[0].as_double, found["g"].gauge.data_points[0].as_double)
    assert (3, list(SECONDS)) == (spread.count, list(spread.explicit_bounds))
    assert 3 == spread.bucket_counts[SECONDS.index(0.005)]
