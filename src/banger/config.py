"""Settings: `config.toml` in $XDG_CONFIG_HOME/banger, or the file that BANGER_CONFIG names."""

import os
from pathlib import Path

import msgspec

from banger.model.errors import Invalid


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every key with its default. Times in seconds.

    boot_timeout_s   how long `vm create` waits for the agent; emulation is slow, so the default is generous
    opencode_timeout_s  how long opencode may take to answer; twice that on a cold boot, four times under emulation
    stop_timeout_s   how long a guest may take to power off before its engine is ended
    health_period_s  how often the daemon asks each running guest for its health
    keep_operations_days  how long results of operations are kept
    """

    boot_timeout_s: float = 120.0
    opencode_timeout_s: float = 30.0
    stop_timeout_s: float = 30.0
    health_period_s: float = 15.0
    keep_operations_days: float = 7.0


def config_path() -> Path:
    if named := os.environ.get("BANGER_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "banger" / "config.toml"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings; a missing file means the defaults. Raises `Invalid` naming the file and the key."""
    path = path or config_path()
    try:
        return msgspec.convert(_read(path), type=Settings)
    except msgspec.ValidationError as error:
        raise _unusable(path, error) from error


def setting_origins(path: Path | None = None) -> dict[str, str]:
    """Where each setting's value comes from: `default`, or the file that gives it. Raises as `load_settings`."""
    path = path or config_path()
    load_settings(path)
    given = _read(path)
    return {name: str(path) if name in given else "default" for name in Settings.__struct_fields__}


def _read(path: Path) -> dict[str, object]:
    try:
        given: dict[str, object] = msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error
    for name in given:
        if name not in Settings.__struct_fields__:
            from difflib import get_close_matches

            near = get_close_matches(name, Settings.__struct_fields__, n=1)
            raise Invalid(
                f"cannot use {path}: there is no setting {name!r}",
                hint=f"did you mean {near[0]}?" if near else "docs/configuration.md lists every key",
            )
    return given


def _unusable(path: Path, error: Exception) -> Invalid:
    return Invalid(f"cannot use {path}: {error}", hint="docs/configuration.md lists every key")
