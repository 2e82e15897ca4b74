"""Files that repeat what pyproject.toml says, for others to read: CITATION.cff, and the recipe of a conda package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import microgpt

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CITATION = (ROOT / "CITATION.cff").read_text("utf-8")
RECIPE = (ROOT / "recipe" / "recipe.yaml").read_text("utf-8")


def field(name: str, text: str) -> str:
    """The value of the only field of this name."""
    (value,) = re.findall(rf"^ *{name}: (.*)$", text, re.MULTILINE)
    return value.strip('"')


def required(section: str) -> set[str]:
    """The packages in a section of the recipe's requirements, as pyproject.toml spells them."""
    packages = re.search(rf"^  {section}:\n((?:    .*\n)+)", RECIPE, re.MULTILINE)[1]
    return {package.replace(" ", "") for package in re.findall("^    - (.*)$", packages, re.MULTILINE)}


def test_versions_are_the_packages() -> None:
    assert field("version", CITATION) == microgpt.__version__
    assert field("  version", RECIPE.split("package:")[0]) == microgpt.__version__


def test_licence_and_addresses_are_the_projects() -> None:
    project = PYPROJECT["project"]
    assert field("license", RECIPE) == project["license"]
    assert re.findall("^    - (.*)$", RECIPE.partition("license_file:")[2], re.MULTILINE) == project["license-files"]
    assert project["license"].startswith(f"{field('license', CITATION)} AND ")  # that of the code
    assert field("repository-code", CITATION) == field("repository", RECIPE) == project["urls"]["Source"]
    assert re.findall("^url: (.*)$", CITATION, re.MULTILINE) == [project["urls"]["Documentation"]]
    assert field("documentation", RECIPE) == field("site_url", (ROOT / "mkdocs.yml").read_text("utf-8"))
    assert field("documentation", RECIPE) == project["urls"]["Documentation"]


def test_the_recipe_requires_what_the_package_requires() -> None:
    project = PYPROJECT["project"]
    assert required("run") == {"python", *project["dependencies"]}
    build = {package.lower() for package in PYPROJECT["build-system"]["requires"]}
    assert required("host") == {"python", "pip", *build}
    assert f'match(python, "{project["requires-python"].replace(">=", "<")}")' == field("skip", RECIPE)
    assert f"microgpt = {project['scripts']['microgpt']}" in RECIPE
