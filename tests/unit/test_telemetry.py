"""What a stranger may say of traces, and what the environment may ask for."""

import pytest

from millrace.otel import Otel
from millrace.settings import SettingError
from millrace.telemetry import child_of, valid_traceparent, valid_tracestate

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_trace_goes_on_but_sampling_is_ours() -> None:
    """The client's flag is neither believed nor passed on."""
    asked, quiet = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"

    assert child_of(asked, sampled=False)[:36] == asked[:36] == child_of(quiet, sampled=True)[:36]
    assert ("00", "01") == (child_of(asked, sampled=False)[-2:], child_of(quiet, sampled=True)[-2:])
    assert len({child_of("", sampled=True)[3:35] for _ in range(10)}) == 10


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\r\nx: y",
        f"00-{TRACE}-{SPAN}-01-more",
        "00-" + "a" * 100_000,
    ],
)
def test_a_traceparent_that_is_none(value: str) -> None:
    """It is dropped."""
    assert "" == valid_traceparent(value)


def test_tracestate_is_bounded() -> None:
    """What is well-formed passes, up to 512 characters and 32 members."""
    assert "a=1,b@c=2" == valid_tracestate("a=1, b@c=2")
    assert [""] * 5 == [
        valid_tracestate(bad)
        for bad in ("a", "a=\x1b[31m", "A=1", ",".join(f"k{n}=1" for n in range(33)), "a=" + "b" * 600)
    ]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (1.0, "", "")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, (1.0, "http/protobuf", "http/protobuf")),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            (1.0, "grpc", "grpc"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
            (1.0, "", "http/protobuf"),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, (1.0, "http/protobuf", "")),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, (1.0, "", "http/protobuf")),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, (0.0, "", "")),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, (0.0, "", "")),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, (0.25, "", "")),
    ],
)
def test_the_environment_is_honoured(env: dict[str, str], expected: tuple[float, str, str]) -> None:
    """As OpenTelemetry has it; but nothing leaves unless an endpoint or an exporter is named."""
    made = Otel.of(env)

    assert expected == (made.ratio, made.traces, made.metrics)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ],
)
def test_what_makes_no_sense_is_named(name: str, value: str) -> None:
    """An error, instead of traces that go nowhere."""
    with pytest.raises(SettingError, match=name):
        Otel.of({name: value})
