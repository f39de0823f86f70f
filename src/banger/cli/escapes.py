"""Escapes of a console, as ssh(1) has them: the escape character counts at the beginning of a line only."""

from enum import Enum


class Escape(Enum):
    DETACH = "."
    HELP = "?"


class Escapes:
    """Tells what was typed from what was meant for us. Pure. `character` None: everything was typed."""

    def __init__(self, character: bytes | None) -> None:
        self._character = character
        self._line_start = True
        self._pending = False

    def feed(self, data: bytes) -> list[bytes | Escape]:
        """What to send and what to do, in order."""
        if self._character is None:
            return [data] if data else []
        found: list[bytes | Escape] = []
        sent = bytearray()
        for number in data:
            byte = bytes((number,))
            if self._pending:
                self._pending = False
                if byte in (b".", b"?"):
                    if sent:
                        found.append(bytes(sent))
                        sent.clear()
                    found.append(Escape(byte.decode()))
                    continue
                # twice is once; before anything else it is an ordinary character
                sent += self._character if byte == self._character else self._character + byte
            elif self._line_start and byte == self._character:
                self._pending = True
                continue
            else:
                sent += byte
            self._line_start = byte in b"\r\n"
        if sent:
            found.append(bytes(sent))
        return found


def parse_escape(text: str) -> bytes | None:
    """`~`, `^]` or `none`. Raises `ValueError`."""
    if text == "none":
        return None
    if len(text) == 2 and text[0] == "^" and "@" <= text[1].upper() <= "_":
        character = chr(ord(text[1].upper()) & 0x1F)
    else:
        character = text
    if len(character) != 1 or not character.isascii() or character in "\r\n.?":
        raise ValueError(f"no escape character: {text!r}")
    return character.encode()
