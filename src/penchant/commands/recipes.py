"""The recipes that come with the package: one a method, one a journey."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from penchant.config.files import read_yaml
from penchant.config.mistakes import nearest
from penchant.core.atomic import write_atomically
from penchant.core.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A YAML file of keys that can be run once its model and data are those of the user.

    Attributes:
        name: of the file, without `.yaml`.
        method: that it trains with.
        about: what it is for, in a sentence.
        file: where it lies in the package.
    """

    name: str
    method: str
    about: str
    file: Path


def recipes() -> list[Recipe]:
    """Every recipe, journeys first, then by name."""
    folder = Path(str(files("penchant"))) / "recipes"
    found = [_read(file) for file in sorted(folder.glob("*.yaml"))]
    return sorted(found, key=lambda one: not one.about.startswith("Journey"))


def copy_recipe(name: str, output: Path | None = None) -> Path:
    """Copy a recipe, to be edited.

    Args:
        name: as `recipes` lists it; hyphens and underscores are the same.
        output: a new file; default: the recipe's name with `.yaml`, in this folder.

    Raises:
        ConfigError: there is no such recipe, or a file in its place.
    """
    known = {one.name.replace("_", "-"): one for one in recipes()}
    recipe = known.get(name.removesuffix(".yaml").replace("_", "-"))
    if recipe is None:
        raise ConfigError(f"no recipe {name!r}; {nearest(name, [r.name for r in known.values()])}")
    target = Path(f"{recipe.name}.yaml") if output is None else output
    if target.exists():
        raise ConfigError(f"{target} is there already; set --output to a new file")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}; make it, or set another --output")
    write_atomically(target, recipe.file.read_text(encoding="utf-8"))
    return target


def _read(file: Path) -> Recipe:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    method = str(read_yaml(file)["method"])
    return Recipe(file.stem, method, first.removeprefix("# "), file)
