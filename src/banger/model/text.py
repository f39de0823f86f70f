"""Words from a guest, for a person."""

LINE_MAX = 500


def harmless(text: str) -> str:
    """One line that changes nothing on a terminal: control characters become `?`, what is too long is cut."""
    return "".join(character if character.isprintable() else "?" for character in text[:LINE_MAX])
