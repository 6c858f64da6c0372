"""The numbers of processes, as their `Here` tells them, under the names that are looked for.

What a user of vLLM has dashboards for, and the Kubernetes inference extension routes by, is called as vLLM
calls it. Labels are a served model, a live process, and words of our own: never what a client wrote.
"""

from collections.abc import Callable, Iterable, Mapping

from millrace import __version__
from millrace import messages as m
from millrace.errors import Code
from millrace.metrics import SECONDS, TOKENS, Family, Histogram, Kind
from millrace.subjects import Role

SPREADS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "first": ("vllm:time_to_first_token_seconds", "From the request to its first token.", SECONDS),
    "between": ("vllm:inter_token_latency_seconds", "From one token to the next.", SECONDS),
    "whole": ("vllm:e2e_request_latency_seconds", "From the request to its last token.", SECONDS),
    "queue": ("vllm:request_queue_time_seconds", "From the queue to an engine.", SECONDS),
    "prefill": ("vllm:request_prefill_time_seconds", "From the engine to the first token.", SECONDS),
    "decode": ("vllm:request_decode_time_seconds", "From the first token to the last.", SECONDS),
    "inference": ("vllm:request_inference_time_seconds", "Prefill and decode.", SECONDS),
    "prompt": ("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS),
    "generation": ("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS),
}

TALLIED = {
    "prompt_tokens": ("vllm:prompt_tokens", "Prompt tokens of requests that have ended."),
    "generated": ("vllm:generation_tokens", "Tokens generated."),
}

COUNTED = {
    "resumed": ("millrace_resumed", "Jobs that went on at another engine."),
    "refused_duplicate": ("millrace_duplicates_refused", "Tokens that came twice and counted once."),
    "refused_stale": ("millrace_stale_refused", "Tokens of a holder that had lost the job."),
    "resends": ("millrace_resends", "Times that an engine was asked to send again."),
    "resubmitted": ("millrace_resubmitted", "Jobs that the queue had lost and that were made again."),
    "detokenizers_switched": ("millrace_detokenizers_switched", "Requests given to another detokenizer."),
    "given_up": ("millrace_jobs_given_up", "Jobs that crashed engines until they were given up."),
    "expired": ("millrace_expired", "Requests whose deadline passed."),
    "dropped": ("millrace_messages_dropped", "Messages lost by a subscription that fell behind."),
    "poisoned": ("millrace_messages_poisoned", "Messages that were not of their subject."),
    "unknown": ("millrace_messages_unknown", "Messages of kinds that a newer version has."),
    "failed": ("millrace_messages_failed", "Messages that could not be handled."),
    "forbidden": ("millrace_messages_forbidden", "Messages that NATS refused."),
    "reconnects": ("millrace_nats_reconnects", "Times that NATS was away and came back."),
    "prefixes_evicted": ("millrace_prefixes_evicted", "Blocks of the prefix cache that made room."),
    "prefixes_restored": ("millrace_prefixes_restored", "Blocks of it that came back from the disk."),
    "prefixes_damaged": ("millrace_prefixes_damaged", "Blocks on the disk that were not what was put there."),
    "prefix_files_ignored": ("millrace_prefix_files_ignored", "Files of blocks that were not this model's."),
    "guessed": ("vllm:spec_decode_num_draft_tokens", "Tokens that were guessed."),
    "guessed_right": ("vllm:spec_decode_num_accepted_tokens", "Guesses that were what was chosen."),
    "kept_for_its_kind": ("millrace_kept_for_its_kind", "Claims refused to engines of another kind."),
    "resumed_on_another_kind": ("millrace_resumed_on_another_kind", "Jobs that went on at one all the same."),
    "steps": ("millrace_steps", "Steps of an engine."),
    "traces_dropped": ("millrace_traces_dropped", "Traces that found the queue of a way out full."),
    "traces_failed": ("millrace_traces_failed", "Traces that a way out did not take."),
}

GROUPED = {
    "revoked_": ("millrace_failovers", "reason", "Jobs taken from an engine."),
    "rejected_": ("millrace_rejected", "reason", "Requests refused."),
}

TAKEN_FOR = ("died", "silent", "hung", "forgotten", "yielded", "superseded")
"""Why a job is taken from an engine, as the ledger says it."""

FROM_ZERO = dict.fromkeys(("dropped", "poisoned", "unknown", "failed", "forbidden", "reconnects"), 0)
GATEWAYS_FROM_ZERO = {
    **FROM_ZERO,
    **dict.fromkeys(("resumed", "refused_duplicate", "refused_stale", "resends", "resubmitted"), 0),
    **dict.fromkeys(("detokenizers_switched", "given_up", "expired"), 0),
    **{f"revoked_{reason}": 0 for reason in TAKEN_FOR},
    **{f"rejected_{code}": 0 for code in Code},
}
"""What is told before it has happened once. Prometheus sees no increase in a series that begins at 1, so the
first crash, which is the one that matters, would raise no alarm."""

MOST_MODELS = 64

Add = Callable[[str, Kind, str, Mapping[str, str], float | Histogram], None]


def families(heres: Iterable[m.Here], queue: Mapping[str, int] | None = None) -> list[Family]:
    """`queue`: the job stream's messages and bytes, if they are known."""
    made: dict[str, Family] = {}

    def add(name: str, kind: Kind, help: str, labels: Mapping[str, str], value: float | Histogram) -> None:
        family = made.setdefault(name, Family(name, kind, help))
        family.samples.append((labels, value))

    add("millrace_build_info", "gauge", "Which Millrace this is.", {"version": __version__}, 1)
    for here in sorted(heres, key=lambda here: (here.role, here.id)):
        who = {"role": here.role, "replica": here.id}
        add("millrace_ready", "gauge", "Whether a process is ready.", who, here.state == "ready")
        add("millrace_load", "gauge", "Requests in hand.", who, here.load)
        gauges = here.gauges
        if "cpu_s" in gauges:
            add("millrace_process_cpu_seconds", "counter", "Processor time used.", who, gauges["cpu_s"])
        if "rss" in gauges:
            add("millrace_process_resident_bytes", "gauge", "Memory in use.", who, gauges["rss"])
        counts = {**(GATEWAYS_FROM_ZERO if here.role == Role.GATEWAY else FROM_ZERO), **here.counts}
        for key, (name, help) in COUNTED.items():
            if key in counts:
                add(name, "counter", help, who, counts[key])
        for key, count in counts.items():
            for prefix, (name, label, help) in GROUPED.items():
                if key.startswith(prefix):
                    reason = {label: key.removeprefix(prefix), "replica": here.id}
                    add(name, "counter", help, reason, count)
        if here.role == Role.ENGINE:
            of = {"model_name": here.model, "replica": here.id}
            add("vllm:num_requests_running", "gauge", "Requests that an engine runs.", of, here.load)
            used = gauges.get("cache_used", 0.0)
            add("vllm:kv_cache_usage_perc", "gauge", "Of an engine's cache, from 0 to 1.", of, used)
            add("millrace_slots", "gauge", "Requests that an engine could run.", of, here.room)
            level = gauges.get("pressure", 0.0)
            add("millrace_pressure", "gauge", "Of an engine's machine: 0 calm, 1 tight, 2 short.", of, level)
        for tallied in here.tallies[:MOST_MODELS]:
            _tallied(add, tallied, here.id)
    for what, amount in (queue or {}).items():
        add(
            f"millrace_queue_{what}",
            "gauge",
            f"The job stream's {what}, running jobs among them.",
            {},
            amount,
        )
    return list(made.values())


def _tallied(add: Add, tallied: m.Tallied, replica: str) -> None:
    of = {"model_name": tallied.model, "replica": replica}
    counts = tallied.counts
    waiting = counts.get("waiting", 0)
    add("vllm:num_requests_waiting", "gauge", "Requests that no engine has yet.", of, waiting)
    for key, (name, help) in TALLIED.items():
        add(name, "counter", help, of, counts.get(key, 0))
    queries, hits = counts.get("prompt_tokens", 0), counts.get("cached_tokens", 0)
    add("vllm:prefix_cache_queries", "counter", "Prompt tokens looked for in the cache.", of, queries)
    add("vllm:prefix_cache_hits", "counter", "Prompt tokens found there.", of, hits)
    for end in ("stop", "length", "abort", "error"):
        labels = {**of, "finished_reason": end}
        add("vllm:request_success", "counter", "Requests that ended.", labels, counts.get(f"ended_{end}", 0))
    for key, (name, help, bounds) in SPREADS.items():
        spread = tallied.spreads.get(key)
        if spread is not None and len(spread.counts) == len(bounds) + 1:  # else of another version
            add(name, "histogram", help, of, Histogram(bounds, spread.counts, spread.sum))


GENAI = {
    "vllm:e2e_request_latency_seconds": "gen_ai.server.request.duration",
    "vllm:time_to_first_token_seconds": "gen_ai.server.time_to_first_token",
    "vllm:inter_token_latency_seconds": "gen_ai.server.time_per_output_token",
}
"""The same distributions by OpenTelemetry's names, which only those who ask over OTLP are told."""


def genai(given: Iterable[Family]) -> list[Family]:
    return [
        Family(
            GENAI[family.name],
            family.kind,
            family.help,
            [
                (
                    {
                        "gen_ai.provider.name": "millrace",
                        "gen_ai.operation.name": "chat",
                        "gen_ai.request.model": labels["model_name"],
                        "replica": labels["replica"],
                    },
                    value,
                )
                for labels, value in family.samples
            ],
        )
        for family in given
        if family.name in GENAI
    ]
