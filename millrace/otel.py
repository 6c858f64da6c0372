"""What the OTEL_* variables ask for, and the way out to an OTLP collector through the SDK's own exporters.

The SDK is imported only where something is exported, and in the exporting thread.
"""

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace import __version__, spans
from millrace.exposed import GENAI, genai
from millrace.metrics import Family, Histogram
from millrace.settings import SettingError
from millrace.spans import Process, Resource, Span

PROTOCOLS = ("http/protobuf", "grpc")

RATIOS = {
    "always_on": 1.0,
    "always_off": 0.0,
    "parentbased_always_on": 1.0,
    "parentbased_always_off": 0.0,
    "traceidratio": None,
    "parentbased_traceidratio": None,
}
"""What a client says of sampling does not count: it could have everything recorded. So the parent-based ones
are what they are for a root, and the ratio is drawn here, not read from a trace id that the client chose."""


@dataclass(frozen=True)
class Otel:
    resource: Resource
    ratio: float  # of requests that are traced
    traces: str = ""  # the protocol; "": they are not exported
    metrics: str = ""
    traces_every_s: float = 1.0
    metrics_every_s: float = 60.0
    queue: int = 2048

    @classmethod
    def of(cls, env: Mapping[str, str]) -> "Otel":
        resource = Resource.of(env)
        if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return cls(resource, 0.0)
        return cls(
            resource,
            _ratio(env),
            _protocol(env, "TRACES"),
            _protocol(env, "METRICS"),
            _milliseconds(env, "OTEL_BSP_SCHEDULE_DELAY", 1000),
            _milliseconds(env, "OTEL_METRIC_EXPORT_INTERVAL", 60_000),
            int(_number(env, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)),
        )

    def sampled(self) -> bool:
        return self.ratio >= 1.0 or random.random() < self.ratio


def _ratio(env: Mapping[str, str]) -> float:
    name = env.get("OTEL_TRACES_SAMPLER", "").strip() or "parentbased_always_on"
    if name not in RATIOS:
        raise SettingError(f"OTEL_TRACES_SAMPLER: {name!r} is none of {', '.join(RATIOS)}")
    ratio = RATIOS[name]
    if ratio is None:
        ratio = _number(env, "OTEL_TRACES_SAMPLER_ARG", 1.0)
        if ratio > 1.0:
            raise SettingError(f"OTEL_TRACES_SAMPLER_ARG: {ratio:g} is not from 0 to 1")
    return ratio


def _protocol(env: Mapping[str, str], signal: str) -> str:
    """How the signal is exported: if an exporter or an endpoint is named, and not if the exporter is none."""
    exporter = env.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        raise SettingError(f"OTEL_{signal}_EXPORTER: {exporter!r} is neither otlp nor none")
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    if exporter == "none" or not (exporter or any(env.get(name) for name in endpoints)):
        return ""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := env.get(name, "").strip():
            if protocol not in PROTOCOLS:
                raise SettingError(f"{name}: {protocol!r} is none of {', '.join(PROTOCOLS)}")
            return protocol
    return PROTOCOLS[0]


def _milliseconds(env: Mapping[str, str], name: str, default: float) -> float:
    return max(_number(env, name, default), 10.0) / 1e3


def _number(env: Mapping[str, str], name: str, default: float) -> float:
    given = env.get(name, "").strip()
    try:
        value = float(given) if given else default
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingError(f"{name}: {given!r} is not a number from 0 on")
    return value


# -- out


class SpanExport:
    """To be called in the outlet's thread. Raises when the collector did not take them."""

    def __init__(self, otel: Otel):
        self._otel = otel
        self._exporter: Any = None
        self._resources: dict[Process, Any] = {}

    def __call__(self, traces: list[list[Span]]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        if self._exporter is None:
            self._exporter = _exporter("trace", self._otel.traces)
        made = []
        for trace in traces:
            made += [self.sdk(span) for span in trace]
            time.sleep(0)  # the event loop may have the interpreter between two traces
        if self._exporter.export(made) is not SpanExportResult.SUCCESS:
            raise ConnectionError("the OTLP collector did not take the spans")

    def sdk(self, span: Span) -> Any:
        """The span as the SDK has it."""
        from opentelemetry.sdk.resources import Resource as SdkResource  # noqa: PLC0415

        known = self._resources
        if span.process not in known:
            if len(known) >= 1000:  # processes come and go
                known.clear()
            known[span.process] = SdkResource(self._otel.resource.attributes(span.process))
        return _sdk(span, known[span.process])


class MetricExport:
    """The numbers that Prometheus is told, as OTLP has them. To be called in the outlet's thread."""

    def __init__(self, otel: Otel, process: Process):
        self._otel = otel
        self._process = process
        self._exporter: Any = None
        self._began_ns = time.time_ns()

    def __call__(self, told: list[list[Family]]) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult  # noqa: PLC0415

        if self._exporter is None:
            self._exporter = _exporter("metric", self._otel.metrics)
        data = self._data([*told[-1], *genai(told[-1])])
        if self._exporter.export(data) is not MetricExportResult.SUCCESS:
            raise ConnectionError("the OTLP collector did not take the metrics")

    def _data(self, families: list[Family]) -> Any:
        from opentelemetry.sdk.metrics import export as sdk  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource as SdkResource  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        now, began = time.time_ns(), self._began_ns
        none: Any = None  # the least and the most are not kept
        cumulative = sdk.AggregationTemporality.CUMULATIVE
        made = []
        for family in families:
            points: list[Any] = []
            data: Any
            for labels, value in family.samples:
                if isinstance(value, Histogram):
                    counts = tuple(value.counts)
                    points.append(
                        sdk.HistogramDataPoint(
                            labels, began, now, sum(counts), value.sum, counts, value.bounds, none, 0.0
                        )
                    )
                else:
                    points.append(sdk.NumberDataPoint(labels, began, now, float(value)))
            if family.kind == "histogram":
                data = sdk.Histogram(points, cumulative)
            elif family.kind == "counter":
                data = sdk.Sum(points, cumulative, is_monotonic=True)
            else:
                data = sdk.Gauge(points)
            unit = "s" if "seconds" in family.name or family.name in GENAI.values() else "1"
            made.append(sdk.Metric(family.name, family.help, unit, data))
        scope = sdk.ScopeMetrics(InstrumentationScope(spans.SCOPE, __version__), made, "")
        resource = SdkResource(self._otel.resource.attributes(self._process))
        return sdk.MetricsData([sdk.ResourceMetrics(resource, [scope], "")])


def _exporter(signal: str, protocol: str) -> Any:
    # They tell of every attempt that failed; the outlet tells of it once a minute.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    match signal, protocol:
        case "trace", "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces  # noqa: PLC0415

            return grpc_traces.OTLPSpanExporter()
        case "trace", _:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces  # noqa: PLC0415

            return http_traces.OTLPSpanExporter()
        case _, "grpc":
            from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics  # noqa: PLC0415

            return grpc_metrics.OTLPMetricExporter()
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics  # noqa: PLC0415

    return http_metrics.OTLPMetricExporter()


def _sdk(span: Span, resource: Any) -> Any:
    from opentelemetry.sdk.trace import Event, ReadableSpan  # noqa: PLC0415
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
    from opentelemetry.trace import (  # noqa: PLC0415
        Link,
        SpanContext,
        SpanKind,
        Status,
        StatusCode,
        TraceFlags,
        TraceState,
    )

    kinds = {
        spans.Kind.INTERNAL: SpanKind.INTERNAL,
        spans.Kind.SERVER: SpanKind.SERVER,
        spans.Kind.CLIENT: SpanKind.CLIENT,
        spans.Kind.PRODUCER: SpanKind.PRODUCER,
        spans.Kind.CONSUMER: SpanKind.CONSUMER,
    }

    def context(trace: str, id: str, state: str = "") -> SpanContext:
        held = TraceState.from_header([state]) if state else None
        return SpanContext(int(trace, 16), int(id, 16), False, TraceFlags(1), held)

    error = span.error
    return ReadableSpan(
        name=span.name,
        context=context(span.trace, span.id, span.tracestate),
        parent=context(span.trace, span.parent) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        events=[Event(e.name, e.attributes, spans.nanoseconds(e.at)) for e in span.events],
        links=[Link(context(link.trace, link.span), link.attributes) for link in span.links],
        kind=kinds[span.kind],
        status=Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error),
        start_time=spans.nanoseconds(span.began),
        end_time=spans.nanoseconds(max(span.began, span.ended)),
        instrumentation_scope=InstrumentationScope(spans.SCOPE, __version__),
    )
