"""Settings: `config.toml` in $XDG_CONFIG_HOME/banger, or the file that BANGER_CONFIG names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from banger.model.errors import Invalid


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Every key with its default. Times in seconds; directories absolute or below ~.

    boot_timeout_s   how long `vm create` waits for the agent; emulation is slow, so the default is generous
    opencode_timeout_s  how long opencode may take to answer; twice that on a cold boot, four times under emulation
    stop_timeout_s   how long a guest may take to power off before its engine is ended
    health_period_s  how often the daemon asks each running guest for its health
    keep_operations_days  how long results of operations are kept
    keep_layers_days  how long a step of a build that no build uses is kept when `image prune` looks
    import_max_mib   how large an image may be that is imported, all its parts together, with their holes
    disk_reserve_mib  what VMs must leave free on the filesystem of the state directory
    bundle_dir       the runtime bundle; empty: `bundle` in the state directory
    agent_path       directory of the agent for new images; empty: the bundle's
    build_step_timeout_s  how long one step of `image build` may take
    build_layers_mib  how much the cache of builds' steps may hold; 0: nothing is kept
    npm_registry     where opencode comes from; empty: where npm on this host gets its packages
    """

    boot_timeout_s: float = 120.0
    opencode_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0
    health_period_s: float = 15.0
    keep_operations_days: float = 7.0
    keep_layers_days: float = 14.0
    import_max_mib: Annotated[int, msgspec.Meta(ge=1)] = 131072
    disk_reserve_mib: Annotated[int, msgspec.Meta(ge=0)] = 2048
    bundle_dir: str = ""
    agent_path: str = ""
    build_step_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0
    build_layers_mib: Annotated[int, msgspec.Meta(ge=0)] = 10240
    npm_registry: str = ""


# what a setting was called before -> what it is called now
LEGACY = {"vsock_ping_helper_path": "agent_path", "ping_helper": "agent_path"}
_DIRECTORIES = ("bundle_dir", "agent_path")


class Config(NamedTuple):
    """What the file gives: the settings, for each where its value comes from, and what the person should be told."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def config_path() -> Path:
    if named := os.environ.get("BANGER_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "banger" / "config.toml"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings; a missing file means the defaults. Raises `Invalid` naming the file and the key."""
    return read_config(path).settings


def read_config(path: Path | None = None) -> Config:
    """The settings, where each comes from (`default`, or the file), and a warning for each older name in use.

    Raises `Invalid` naming the file and the key.
    """
    path = path or config_path()
    given, older = _renamed(path, _read(path))
    for name in _DIRECTORIES:
        if isinstance(text := given.get(name), str) and text:
            given[name] = _directory(path, name, text)
    try:
        settings = msgspec.convert(given, type=Settings)
    except msgspec.ValidationError as error:
        raise _unusable(path, error) from error
    origins = {
        name: (f"{path} (as {older[name][0]})" if name in older else str(path)) if name in given else "default"
        for name in Settings.__struct_fields__
    }
    warnings = [f"{path}: {was} is called {name} now" for name, names in older.items() for was in names]
    return Config(settings, origins, tuple(warnings))


def _read(path: Path) -> dict[str, object]:
    try:
        given: dict[str, object] = msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        return {}
    except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
        raise _unusable(path, error) from error
    for name in given:
        if name not in Settings.__struct_fields__ and name not in LEGACY:
            from difflib import get_close_matches

            near = get_close_matches(name, Settings.__struct_fields__, n=1)
            raise Invalid(
                f"cannot use {path}: there is no setting {name!r}",
                hint=f"did you mean {near[0]}?" if near else "docs/configuration.md lists every key",
            )
    return given


def _renamed(path: Path, given: Mapping[str, object]) -> tuple[dict[str, object], dict[str, list[str]]]:
    """What is given, under today's names; and for each name, by which older ones it was given."""
    now = {name: value for name, value in given.items() if name not in LEGACY}
    older: dict[str, list[str]] = {}
    for was, name in LEGACY.items():
        if was not in given:
            continue
        if now.setdefault(name, given[was]) != given[was]:
            raise Invalid(
                f"cannot use {path}: {was} is the older name of {name}, and they differ",
                hint=f"keep {name} alone",
            )
        older.setdefault(name, []).append(was)
    return now, older


def _directory(path: Path, name: str, text: str) -> str:
    try:
        directory = Path(text).expanduser()
    except RuntimeError as error:
        raise _unusable(path, error) from error
    if not directory.is_absolute():
        raise Invalid(f"cannot use {path}: {name} is {text!r}, which is not absolute", hint="begin it with / or ~/")
    return str(directory)


def _unusable(path: Path, error: Exception) -> Invalid:
    return Invalid(f"cannot use {path}: {error}", hint="docs/configuration.md lists every key")
