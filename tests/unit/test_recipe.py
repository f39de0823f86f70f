"""Recipes: what flags and files together ask for, and what is refused before anything starts."""

import argparse
from pathlib import Path

import pytest

from banger.cli.parser import parse
from banger.cli.recipes import build_spec, package_words
from banger.images.distros import distro_of
from banger.model.errors import Invalid, NotFound, Unsupported
from banger.model.recipe import BuildSpec, Copy, read_copy, read_packages, read_recipe

RECIPE = """
name = "tools"
from = "debian"
size = "6G"
packages = ["git", "jq"]
package_file = "more.txt"
copy = ["site:/opt/site"]
scripts = ["setup.sh", "/abs/last.sh"]
docker = true
"""


def words(*given: str) -> argparse.Namespace:
    return parse(["image", "build", *given])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in a directory that is not the present one."""
    beside, here = tmp_path / "recipes", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    (beside / "tools.toml").write_text(RECIPE)
    (beside / "more.txt").write_text("# editors\nvim, nano  # both\n\nless\n")
    monkeypatch.chdir(here)
    return beside / "tools.toml"


@pytest.mark.parametrize("form", [["{file}"], ["tools", "--recipe", "{file}"], ["--recipe", "{file}"]])
def test_a_file_says_all_that_flags_say_and_its_paths_are_beside_it(recipe: Path, form: list[str]) -> None:
    beside = recipe.parent
    spec = build_spec(words(*(word.format(file=recipe) for word in form)))
    assert spec == BuildSpec(
        name="tools",
        base="debian",
        size=6 << 30,
        packages=("git", "jq", "vim", "nano", "less"),
        copy=(Copy(str(beside / "site"), "/opt/site"),),
        scripts=(str(beside / "setup.sh"), "/abs/last.sh"),
        docker=True,
    )


def test_flags_add_to_a_recipes_lists_and_override_its_values(recipe: Path) -> None:
    flags = ["mine", "--from", "other", "--size", "8G", "--no-docker", "--opencode", "--no-cache", "--keep-on-failure"]
    flags += ["--packages", "tree,git", "--script", "here.sh", "--copy", "./a:/b/"]
    spec = build_spec(words(*flags, "--recipe", str(recipe)))
    here, beside = Path.cwd(), recipe.parent
    assert (spec.name, spec.base, spec.size) == ("mine", "other", 8 << 30)
    assert (spec.docker, spec.opencode, spec.cache, spec.keep_on_failure) == (False, True, False, True)
    assert spec.packages == ("git", "jq", "vim", "nano", "less", "tree")
    assert spec.scripts == (str(beside / "setup.sh"), "/abs/last.sh", str(here / "here.sh"))
    assert spec.copy == (Copy(str(beside / "site"), "/opt/site"), Copy(str(here / "a"), "/b/"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("pacakges = ['a']", "a recipe has no 'pacakges'", "did you mean packages?"),
        ("base = 'debian'", "a recipe has no 'base'", "it may have name, from, size"),
        ("packages = 'git'", "Expected `array`", "docs/build.md"),
        ("= 3", "cannot use r.toml", "docs/build.md"),
        ("docker = 'yes'", "Expected `bool`", "docs/build.md"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_recipe(text.encode(), "r.toml")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no name"),
        (["x"], "what to build from"),
        (["x", "--from", "debian", "--copy", "nowhere"], "no SRC:DST"),
        (["x", "--from", "debian", "--copy", "a:relative"], "no SRC:DST"),
        (["x", "--from", "debian", "--size", "big"], "not a size"),
    ],
)
def test_flags_that_say_too_little_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        build_spec(words(*given))


def test_two_recipes_and_a_missing_one_are_refused(recipe: Path) -> None:
    with pytest.raises(Invalid, match="two recipes"):
        build_spec(words(str(recipe), "--recipe", str(recipe)))
    with pytest.raises(NotFound, match=r"there is no file nowhere\.toml"):
        build_spec(words("nowhere.toml"))


def test_a_source_may_have_colons() -> None:
    assert read_copy("a:b:/c/d") == ("a:b", "/c/d")
    assert read_copy("/a:/b") == ("/a", "/b")


def test_a_list_of_packages_has_comments() -> None:
    assert read_packages("a, b\n# c\nd # e\n") == ["a", "b", "d"]


@pytest.mark.parametrize(
    "spec",
    [
        BuildSpec(name="Bad", base="debian"),
        BuildSpec(name="debian", base="debian"),
        BuildSpec(name="x", base="debian", size=1000),
        BuildSpec(name="x", base="debian", scripts=("setup.sh",)),
        BuildSpec(name="x", base="debian", copy=(Copy("/a", "b"),)),
        BuildSpec(name="x", base="debian", copy=(Copy("/a", "/b/../c"),)),
        BuildSpec(name="x", base="debian", copy=(Copy("/a", "/b\n"),)),
        BuildSpec(name="x", base="debian", packages=("a",) * 5000),
    ],
)
def test_what_can_never_be_built_is_refused(spec: BuildSpec) -> None:
    with pytest.raises(Invalid):
        spec.check()


@pytest.mark.parametrize("name", ["git", "g++", "libc6:i386", "jq=1.6-2.1+deb12u3", "python3.11", "0ad"])
def test_packages_may_be_called_so(name: str) -> None:
    assert f" {name} " in distro_of("debian").install_command([name])


@pytest.mark.parametrize("name", ["", "-y", "git-", "Git", "a b", "a;b", "$(x)", "a/b", "--", "../x", "a\nb", "gït"])
def test_what_would_be_no_package_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="is not a package name"):
        distro_of("debian").install_command([name])


def test_each_distribution_has_its_own_words() -> None:
    assert "apk add" in distro_of("alpine").install_command(["jq"])
    assert "xbps-install" in distro_of("void").install_command(["jq"])
    with pytest.raises(Unsupported, match="plan9"):
        distro_of("plan9")


def test_what_changed_in_a_word() -> None:
    assert package_words([]) == "+0 -0 packages"
    came, went, new = ({"before": b, "after": a} for b, a in (("", "1"), ("1", ""), ("1", "2")))
    assert package_words([came, came, went]) == "+2 -1 packages"
    assert package_words([came, new]) == "+1 -0 packages, 1 of another version"
