"""Which web pages may ask from a browser: what it is told about pages of other origins (CORS).

Programs that are no browsers are not concerned. Without the setting a page has to come from this service.
"""

from litestar.config.cors import CORSConfig

from millrace import settings

TOLD = [
    "x-request-id",
    "x-trace-id",
    "x-should-retry",
    "retry-after",
    "retry-after-ms",
    "x-millrace-queue-position",
    "x-millrace-queue-estimate-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
]
"""Headers of answers that such a page may read."""


def allowed(origins: str) -> CORSConfig | None:
    """`origins` as the setting has it."""
    names = settings.origins(origins)
    return CORSConfig(allow_origins=names, expose_headers=TOLD) if names else None
