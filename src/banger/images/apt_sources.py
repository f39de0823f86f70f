"""Which package mirrors a bootstrap uses: the host's own for the suite when it runs that Debian, sources.list(5)."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from banger.model.errors import Invalid

_ONE_LINE = re.compile(r"^deb\s+\[([^\]]*)\]\s+(\S+)\s+(\S+)\s+(.+)$")
_WORD = re.compile(r"[A-Za-z0-9./_-]+")
_KEYRING = re.compile(r"/usr/share/keyrings/debian-archive-[a-z0-9-]+\.gpg")
_DEFAULT_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a deb822 file, names in lower case, comments dropped, continued lines joined."""
    stanza: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, last = {}, ""
        elif line[0] in " \t" and last:
            stanza[last] += " " + line.strip()
        elif ":" in line:
            last, _, value = line.partition(":")
            last = last.strip().lower()
            stanza[last] = value.strip()


def _line(uri: str, suite: str, components: list[str], keyring: str) -> Iterator[str]:
    """The entry as one line, if it is plain enough to be passed on and holds no password."""
    try:
        url = urlsplit(uri)
    except ValueError:
        return
    if url.scheme not in ("http", "https", "file") or "@" in url.netloc or re.search(r"\s", uri):
        return
    if all(_WORD.fullmatch(word) for word in (suite, *components)) and _KEYRING.fullmatch(keyring):
        yield f"deb [signed-by={keyring}] {uri} {suite} {' '.join(components)}"


def _wanted(suite: str, codename: str) -> bool:
    return suite in (codename, f"{codename}-updates", f"{codename}-security")


def parse_deb822(text: str, codename: str) -> list[str]:
    """One-line entries for the codename's suites out of a .sources file; only those of Debian's own keyring."""
    found: list[str] = []
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes").lower() == "no":
            continue
        for uri in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                if _wanted(suite, codename):
                    components = stanza.get("components", "").split()
                    found += _line(uri, suite, components, stanza.get("signed-by", ""))
    return found


def parse_one_line(text: str, codename: str) -> list[str]:
    """The same out of a sources.list."""
    found: list[str] = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if match is None or not _wanted(match[3], codename):
            continue
        options = dict(option.partition("=")[::2] for option in match[1].split())
        found += _line(match[2], match[3], match[4].split(), options.get("signed-by", ""))
    return found


def _is_host_release(codename: str, os_release: Path) -> bool:
    try:
        lines = os_release.read_text().splitlines()
    except OSError:
        return False
    return "ID=debian" in lines and f"VERSION_CODENAME={codename}" in lines


def host_sources(codename: str, etc: Path = Path("/etc")) -> list[str]:
    """The host's own entries for this Debian release, without repeats; empty when the host runs another one."""
    if not _is_host_release(codename, etc / "os-release"):
        return []
    apt = etc / "apt"
    found: list[str] = []
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.is_file() and file.suffix == ".list":
            found += parse_one_line(file.read_text(errors="replace"), codename)
        elif file.is_file() and file.suffix == ".sources":
            found += parse_deb822(file.read_text(errors="replace"), codename)
    return list(dict.fromkeys(found))


def mirror_source(mirror: str, codename: str) -> list[str]:
    """The entry for a mirror that the person named. Raises `Invalid` for what is not a plain URL."""
    found = list(_line(mirror, codename, ["main"], _DEFAULT_KEYRING))
    if not found:
        raise Invalid(
            f"{mirror!r} cannot be used as a mirror",
            hint="give an http, https or file URL without a password or spaces",
        )
    return found
