"""Settings: what is given, what is the default, and what a mistake is met with."""

from pathlib import Path

import pytest

from banger.config import Settings, load_settings, setting_origins
from banger.model.errors import Invalid


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_without_a_file_all_are_defaults(file: Path) -> None:
    assert load_settings(file) == Settings()
    assert set(setting_origins(file).values()) == {"default"}


def test_what_the_file_gives_is_taken_and_told(file: Path) -> None:
    file.write_text("boot_timeout_s = 7\n")
    assert load_settings(file) == Settings(boot_timeout_s=7.0)
    origins = setting_origins(file)
    assert origins["boot_timeout_s"] == str(file)
    assert origins["stop_timeout_s"] == "default"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("boot_timeout = 7", "there is no setting 'boot_timeout'", "did you mean boot_timeout_s?"),
        ("colour = 7", "there is no setting 'colour'", "docs/configuration.md"),
        ("boot_timeout_s = 'long'", "boot_timeout_s", "docs/configuration.md"),
        ("boot_timeout_s =", "cannot use", "docs/configuration.md"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(file: Path, text: str, said: str, hint: str) -> None:
    file.write_text(text)
    with pytest.raises(Invalid) as caught:
        load_settings(file)
    assert str(file) in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint
