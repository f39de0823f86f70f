"""Where npm packages come from on this host. None is named here: the person's settings and npm's own are asked."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from banger.model.errors import BangerError, HostRequirement, Invalid
from banger.system.process import run

_ASK_S = 30.0
_MAX_NPMRC = 1024 * 1024
_SETTING = re.compile(r"""^registry\s*=\s*["']?([^"'\s]+)["']?\s*$""", re.MULTILINE)
_WITHOUT = "or leave opencode out with --no-opencode"


async def find_registry(setting: str | None, home: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The registry's URL, without a slash at its end.

    Asked in this order: the setting `npm_registry`, the variable npm_config_registry in any case, npm itself,
    and ~/.npmrc. Raises `Invalid` for what is no plain URL, `HostRequirement` when nobody knows one.
    """
    environ = os.environ if environ is None else environ
    if setting:
        return _plain(setting, "the setting npm_registry")
    for name, value in environ.items():
        if name.lower() == "npm_config_registry" and value:
            return _plain(value, f"the variable {name}")
    if told := await _ask_npm():
        return _plain(told, "npm")
    if told := _npmrc((home or Path.home()) / ".npmrc"):
        return _plain(told, "~/.npmrc")
    raise HostRequirement(
        "nothing on this host says where npm packages come from",
        hint=f"install npm (apt-get install npm), or set npm_registry in config.toml, {_WITHOUT}",
    )


async def _ask_npm() -> str:
    """What npm is configured with; nothing when there is no npm, or one that does not work."""
    try:
        told = await run(["npm", "config", "get", "registry"], timeout=_ASK_S, cwd="/")
    except BangerError:
        return ""
    text = told.stdout[:4096].decode(errors="replace").strip()
    return "" if text in ("undefined", "null") else text


def _npmrc(file: Path) -> str:
    """The last `registry=` of the file. One that npm would have to expand is passed over."""
    try:
        with file.open(errors="replace") as opened:
            found = _SETTING.findall(opened.read(_MAX_NPMRC))
    except OSError:
        return ""
    return found[-1] if found and "${" not in found[-1] else ""


def _plain(url: str, who: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https", "file") and "@" not in parts.netloc
    except ValueError:
        plain = False
    if not plain or re.search(r"[\s\x00-\x1f?#]", url):
        raise Invalid(
            f"the npm registry that {who} names cannot be used",
            hint="set npm_registry in config.toml to an http or https URL without a password, " + _WITHOUT,
        )
    return url.rstrip("/")


def tarball_url(registry: str, package: str, version: str) -> str:
    """Where a registry keeps the package, by npm's convention for unscoped names."""
    return f"{registry}/{package}/-/{package}-{version}.tgz"
