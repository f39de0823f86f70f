"""Settings: what is given, what is the default, and what a mistake is met with."""

from pathlib import Path

import pytest

from banger.config import LEGACY, Settings, load_settings, read_config
from banger.model.errors import Invalid


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_without_a_file_all_are_defaults(file: Path) -> None:
    assert load_settings(file) == Settings()
    assert set(read_config(file).origins.values()) == {"default"}


def test_what_the_file_gives_is_taken_and_told(file: Path) -> None:
    file.write_text("boot_timeout_s = 7\n")
    assert load_settings(file) == Settings(boot_timeout_s=7.0)
    origins = read_config(file).origins
    assert origins["boot_timeout_s"] == str(file)
    assert origins["stop_timeout_s"] == "default"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("boot_timeout = 7", "there is no setting 'boot_timeout'", "did you mean boot_timeout_s?"),
        ("colour = 7", "there is no setting 'colour'", "docs/configuration.md"),
        ("boot_timeout_s = 'long'", "boot_timeout_s", "docs/configuration.md"),
        ("boot_timeout_s =", "cannot use", "docs/configuration.md"),
        ("agent_paht = '/a'", "there is no setting 'agent_paht'", "did you mean agent_path?"),
        ("bundle_dir = 7", "bundle_dir", "docs/configuration.md"),
        ("bundle_dir = 'here'", "bundle_dir is 'here'", "begin it with /"),
        ("ping_helper = 'here'", "agent_path is 'here'", "begin it with /"),
        ("ping_helper = '/a'\nagent_path = '/b'", "ping_helper is the older name of agent_path", "agent_path alone"),
        ("ping_helper = '/a'\nvsock_ping_helper_path = '/b'", "they differ", "agent_path alone"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(file: Path, text: str, said: str, hint: str) -> None:
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        load_settings(file)
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("was", LEGACY)
def test_an_older_name_is_read_with_one_warning(file: Path, was: str) -> None:
    file.write_text(f"{was} = '/opt/agent'\n")
    settings, origins, warnings = read_config(file)
    assert settings == Settings(agent_path="/opt/agent")
    assert origins["agent_path"] == f"{file} (as {was})"
    assert warnings == (f"{file}: {was} is called agent_path now",)


def test_names_that_agree_are_one_setting(file: Path) -> None:
    file.write_text("".join(f"{name} = '/a'\n" for name in ("agent_path", *LEGACY)))
    settings, origins, warnings = read_config(file)
    assert settings.agent_path == "/a"
    assert len(warnings) == len(LEGACY)
    assert origins["agent_path"].startswith(str(file))


def test_a_directory_may_begin_with_the_persons_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    file.write_text("bundle_dir = '~/bundle'\n")
    assert load_settings(file).bundle_dir == "/home/somebody/bundle"


def test_every_setting_is_on_the_page_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    rows = {cells[1].strip(): cells[2].strip() for line in page.splitlines() if len(cells := line.split("|")) > 3}
    for name in Settings.__struct_fields__:
        default = getattr(Settings(), name)
        assert rows.get(f"`{name}`") == (f"{default:g}" if default else '`""`'), name
    for was in LEGACY:
        assert f"`{was}`" in page


def test_what_is_shown_is_what_may_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from banger.cli.main import main

    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("agent_path = '/with \"quotes\"'\nboot_timeout_s = 7.5\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BANGER_CONFIG", str(first))
        assert main(["config", "show"]) == 0
    second.write_text(capsys.readouterr().out)
    assert load_settings(second) == load_settings(first)
