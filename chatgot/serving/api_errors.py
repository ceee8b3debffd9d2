"""Errors in OpenAI's form, so that its client raises the exception that fits."""

from collections.abc import Mapping

from fastapi.responses import Response

from chatgot.serving.json_answers import JsonAnswer


class ApiError(Exception):
    """A request that is answered with an error.

    param: the field that is wrong. code: OpenAI's name for what happened.
    headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, object]:
        """Return the error as OpenAI writes it."""
        return {
            "error": {
                "message": self.message,
                "type": _type_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Return the whole answer."""
        return JsonAnswer(self.content(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that is wrong in itself."""
    return ApiError(400, message, param=param, code=code)


def too_busy(message: str) -> ApiError:
    """Return the error of a request that may come again in a second."""
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "1"})


def internal_error() -> ApiError:
    """Return the error of a request that met a bug of ours; the log has the traceback."""
    return ApiError(500, "the server made a mistake; its log says which", code="internal_error")


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
