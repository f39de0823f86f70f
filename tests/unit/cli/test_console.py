"""What was typed and what was meant for us; and what of a guest's words reaches a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.cli.escapes import Escape, Escapes, parse_escape
from banger.cli.plain import Plain


def fed(*parts: bytes, character: bytes | None = b"~") -> list[bytes | Escape]:
    escapes = Escapes(character)
    return [found for part in parts for found in escapes.feed(part)]


def test_the_escape_counts_at_the_beginning_of_a_line() -> None:
    assert fed(b"~.") == [Escape.DETACH]
    assert fed(b"ls\r~.") == [b"ls\r", Escape.DETACH]
    assert fed(b"ls\r", b"~", b".") == [b"ls\r", Escape.DETACH]
    assert fed(b"\r~?~.") == [b"\r", Escape.HELP, Escape.DETACH]


def test_elsewhere_it_is_a_character_like_others() -> None:
    assert fed(b"ls ~.\r") == [b"ls ~.\r"]
    assert fed(b"a", b"~", b".") == [b"a", b"~", b"."]


def test_twice_is_once_and_before_others_it_is_itself() -> None:
    assert fed(b"\r~~.") == [b"\r~."]
    assert fed(b"~/x\r") == [b"~/x\r"]
    assert fed(b"~\r~.") == [b"~\r", Escape.DETACH]


def test_another_character_or_none() -> None:
    assert fed(b"~.\r\x1d.", character=b"\x1d") == [b"~.\r", Escape.DETACH]
    assert fed(b"~.", character=None) == [b"~."]
    assert (parse_escape("~"), parse_escape("^]"), parse_escape("none")) == (b"~", b"\x1d", None)
    assert parse_escape("^") == b"^"


@pytest.mark.parametrize("text", ["", "ab", "\r", ".", "ä", "^!", "^?"])
def test_what_is_no_escape_character(text: str) -> None:
    with pytest.raises(ValueError, match="no escape character"):
        parse_escape(text)


@given(st.lists(st.binary(max_size=8)))
def test_nothing_typed_is_lost_or_made_up(parts: list[bytes]) -> None:
    if b"~" not in b"".join(parts):
        assert b"".join(part for part in fed(*parts) if isinstance(part, bytes)) == b"".join(parts)


@given(st.lists(st.sampled_from([b"~", b".", b"?", b"\r", b"a"]), max_size=12))
def test_it_is_the_same_in_whatever_pieces_it_comes(keys: list[bytes]) -> None:
    def joined(found: list[bytes | Escape]) -> list[bytes | Escape]:
        merged: list[bytes | Escape] = []
        for part in found:
            if merged and isinstance(part, bytes) and isinstance(last := merged[-1], bytes):
                merged[-1] = last + part
            else:
                merged.append(part)
        return merged

    assert joined(fed(*keys)) == joined(fed(b"".join(keys)))


def cleaned(*parts: bytes, terminal: bool = True) -> str:
    plain = Plain(terminal=terminal)
    return "".join(plain.feed(part) for part in parts) + plain.end()


def test_text_and_colours_reach_a_terminal_and_nothing_else_does() -> None:
    assert cleaned(b"a\tb\r\nc\n") == "a\tb\nc\n"
    assert cleaned(b"\x1b[1;31mred\x1b[0m") == "\x1b[1;31mred\x1b[0m\x1b[0m"
    assert cleaned(b"a\x1b[2Jb\x1b[6nc\x1b[?2004hd") == "abcd"
    assert cleaned(b"a\x1b]0;title\x07b\x1b]52;c;AAAA\x1b\\c\x1bPq\x1b\\d\x1bce") == "abcde"
    assert cleaned(b"a\x07b\x00c\x9bd\x7f\xe2\x80\xae") == "a?b?c\ufffdd??"


def test_returns_are_line_ends_only_where_something_was_written() -> None:
    assert cleaned(b"10%\r20%\r\r\n\r\nx\n\r42") == "10%\n20%\n\nx\n42"
    assert cleaned(b"a\r", b"\nb\r", b"c") == "a\nb\nc"


def test_a_sequence_may_come_in_pieces_and_a_hostile_one_without_end() -> None:
    assert cleaned(b"a\x1b", b"[2", b"Jb\x1b]0;ti", b"tle\x07c\xe2", b"\x82", b"\xac") == "abc\u20ac"
    assert len(cleaned(b"\x1b]" + b"x" * 100_000)) > 90_000
    assert "\x1b" not in cleaned(b"\x1b]" + b"x" * 100_000, b"\x1b[", b"\x1b", b"\x1b[")


@given(st.lists(st.binary(max_size=20)))
def test_no_control_character_is_ever_left(parts: list[bytes]) -> None:
    text = cleaned(*parts)
    for piece in text.split("\x1b")[1:]:
        assert piece.startswith("["), text
        assert piece[1:].lstrip("0123456789;:").startswith("m"), text
    assert all(c.isprintable() or c in "\n\t\x1b" for c in text)


def test_a_file_or_pipe_gets_all_but_the_returns_at_ends_of_lines() -> None:
    assert cleaned(b"\x1b[2Ja\r\nb\rc\x07", terminal=False) == "\x1b[2Ja\nb\rc\x07"
