"""Every way a request can end badly, and what its client is told.

    Failure
      the request is wrong            (do not retry)
        invalid_request               400  a parameter is missing, unknown or out of range
        context_length_exceeded       400  prompt and answer do not fit the model
        invalid_api_key               401  the key is missing, or nobody's
        model_not_found               404  no such model is served here
        not_found                     404  no such route or request
        method_not_allowed            405  the route exists, the method does not
        body_too_large                413  the request body is over the limit
      the service cannot take it now  (retry after the given time)
        request_timeout               408  the request's body came too slowly
        queue_full                    429  the job queue is at its limit, or the tenant's part of it
        rate_limit_exceeded           429  the tenant's limit of requests or tokens is used up
        unavailable                   503  a part of the pipeline is away
        draining                      503  this gateway is going away; another one answers
      it was taken and failed
        cancelled                     499  the client went away or asked to stop
        job_crashed                   500  the job ended its engine again and again
        internal                      500  a defect in Millrace
        deadline_exceeded             504  the request's time ran out

A `Failure` is raised or sent; `MEANINGS` is the only place that knows its HTTP form.
"""

from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    AUTHENTICATION = "invalid_api_key"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limit_exceeded"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    CANCELLED = "cancelled"
    JOB_CRASHED = "job_crashed"
    INTERNAL = "internal"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class Meaning(NamedTuple):
    status: int
    type: str  # the OpenAI error type
    retry: bool  # whether the same request may succeed a little later


MEANINGS: dict[Code, Meaning] = {
    Code.INVALID_REQUEST: Meaning(400, "invalid_request_error", False),
    Code.CONTEXT_LENGTH_EXCEEDED: Meaning(400, "invalid_request_error", False),
    Code.AUTHENTICATION: Meaning(401, "authentication_error", False),
    Code.MODEL_NOT_FOUND: Meaning(404, "invalid_request_error", False),
    Code.NOT_FOUND: Meaning(404, "invalid_request_error", False),
    Code.METHOD_NOT_ALLOWED: Meaning(405, "invalid_request_error", False),
    Code.BODY_TOO_LARGE: Meaning(413, "invalid_request_error", False),
    Code.REQUEST_TIMEOUT: Meaning(408, "timeout_error", True),
    Code.QUEUE_FULL: Meaning(429, "rate_limit_error", True),
    Code.RATE_LIMITED: Meaning(429, "rate_limit_error", True),
    Code.UNAVAILABLE: Meaning(503, "service_unavailable_error", True),
    Code.DRAINING: Meaning(503, "service_unavailable_error", True),
    Code.CANCELLED: Meaning(499, "invalid_request_error", False),
    Code.JOB_CRASHED: Meaning(500, "server_error", False),
    Code.INTERNAL: Meaning(500, "server_error", False),
    Code.DEADLINE_EXCEEDED: Meaning(504, "timeout_error", False),
}


class Failure(Exception):
    """A request's typed bad end. `param` names the field at fault, where there is one."""

    def __init__(
        self, code: Code, message: str, *, param: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after  # seconds

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.code]
