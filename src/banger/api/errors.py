"""Errors to HTTP: the one place where it is decided."""

from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from banger.model.errors import BangerError, Invalid, NotFound

AnyRequest = Request[Any, Any, Any]


def _reply(error: BangerError, status: int | None = None) -> Response[dict[str, Any]]:
    return Response({"error": error.to_dict()}, status_code=status or error.http_status, media_type="application/json")


def banger_error(_: AnyRequest, error: BangerError) -> Response[dict[str, Any]]:
    return _reply(error)


def validation_error(_: AnyRequest, error: ValidationException) -> Response[dict[str, Any]]:
    """A body or parameter of the wrong shape: say which key, and why."""
    extra = error.extra if isinstance(error.extra, list) else []
    told = [f"{item.get('key', 'body')}: {item['message']}" for item in extra if isinstance(item, dict)]
    return _reply(Invalid("; ".join(told) or error.detail, hint="/schema describes every request"))


def http_error(_: AnyRequest, error: HTTPException) -> Response[dict[str, Any]]:
    told = NotFound(error.detail) if error.status_code == 404 else Invalid(f"the request is malformed: {error.detail}")
    told.hint = "/schema lists every path"
    return _reply(told, error.status_code)


HANDLERS: dict[int | type[Exception], Any] = {
    BangerError: banger_error,
    ValidationException: validation_error,
    HTTPException: http_error,
}
