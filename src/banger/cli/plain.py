"""A guest's words for a person's terminal: text and its colours, and nothing that could act on the terminal."""

import codecs
import re

_HELD_MAX = 4096
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_SEQUENCE = re.compile(  # ECMA-48: CSI; OSC, DCS, SOS, PM and APC with their strings; other escapes
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]*[0-OQ-WYZ\\`-~])"
)
_BEGUN = re.compile(r"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)?|\r+)\Z")
_RETURNS_AND_NEWLINE = re.compile(r"\r+\n")
_IDLE_RETURNS = re.compile(r"(?<=\n)\r+")
_RETURNS = re.compile(r"\r+")
_RESET = "\x1b[0m"


class Plain:
    """Bytes to text, piece by piece: ends of lines become newlines.

    For a terminal also: what is neither text nor a colour goes, and other control characters become `?`.
    """

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._line_start = True
        self._coloured = False

    def feed(self, data: bytes, *, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        if not final and (begun := _BEGUN.search(text)) and len(text) - begun.start() <= _HELD_MAX:
            text, self._held = text[: begun.start()], text[begun.start() :]
        if not self._terminal:
            return text.replace("\r\n", "\n")
        return self._clean(text)

    def _clean(self, text: str) -> str:
        pieces = []
        at = 0
        for sequence in _SEQUENCE.finditer(text):
            pieces.append(self._printable(text[at : sequence.start()]))
            if _COLOUR.fullmatch(sequence[0]):
                self._coloured = True
                pieces.append(sequence[0])
            at = sequence.end()
        pieces.append(self._printable(text[at:]))
        return "".join(pieces)

    def _printable(self, text: str) -> str:
        if "\r" in text:
            before = "\n" if self._line_start else " "
            text = _IDLE_RETURNS.sub("", _RETURNS_AND_NEWLINE.sub("\n", before + text))
            text = _RETURNS.sub("\n", text)[1:]
        if text:
            self._line_start = text.endswith("\n")
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)

    def end(self) -> str:
        """What was held back, and an end of colours."""
        return self.feed(b"", final=True) + (_RESET if self._coloured else "")
