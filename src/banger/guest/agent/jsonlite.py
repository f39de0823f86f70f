"""JSON through the C half of the standard library's json, whose Python half imports `re`.

Importing json takes longer than everything else the agent imports taken together.
"""

MAX_DIGITS = 20

_PLAIN = {None: "null", True: "true", False: "false"}


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def _constant(text: str) -> object:
    raise ValueError(text + " is not JSON")


class _Settings:
    """What `_json.make_scanner` reads from json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = staticmethod(_integer)
    parse_constant = staticmethod(_constant)
    memo: "dict[str, str]" = {}  # noqa: RUF012


def decode(body: bytes) -> object:
    """The JSON value in `body` (UTF-8). Raises ValueError, with a reason in one line."""
    text = body.decode().strip(" \t\r\n")
    try:
        found, value = _scan(text)
        return value if found else _decode_slowly(text)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None


def _scan(text: str) -> "tuple[bool, object]":
    """(True, value), or False for text that is not JSON or where this Python has no such scanner."""
    try:
        from _json import make_scanner

        value, end = make_scanner(_Settings)(text, 0)  # type: ignore[arg-type]
    except (ImportError, StopIteration, ValueError, SystemError):
        # SystemError: before Python 3.12 the scanner can only tell an error when json.decoder is loaded already.
        return False, None
    return end == len(text), value


def _decode_slowly(text: str) -> object:
    """What json makes of it: in practice the error with its place."""
    import json

    return json.loads(text, parse_int=_integer, parse_constant=_constant)


def encode(value: object) -> str:
    """ASCII JSON of None, bool, int, float, str, and of dicts with str keys, lists and tuples of these."""
    if value is None or value is True or value is False:
        return _PLAIN[value]
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(_quote(key) + ":" + encode(item) for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(encode(item) for item in value) + "]"
    raise TypeError(f"cannot write {value!r} as JSON")


def _quote(text: str) -> str:
    try:
        from _json import encode_basestring_ascii
    except ImportError:
        from json.encoder import encode_basestring_ascii
    return encode_basestring_ascii(text)
