"""From a YAML file and `section.key=value` overrides to a checked `Config`; every mistake is one line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from allpairs.errors import UserError, nearest
from distributed.config.keys import TAGS, known_keys
from distributed.config.mistakes import mistakes
from distributed.config.tree import Config


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `overrides` in order and check the result.

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible value; one line per mistake.
    """
    return validate(apply(read(path), overrides), source=str(path))


def read(path: Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    if not path.is_file():
        neighbours = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such config file{nearest(str(path), neighbours) if neighbours else ''}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def apply(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `tree` with each `section.key=value` set; values are YAML (`null`, `[1, 2]`, `true`, `3e-4`).

    Setting a tag (`objective.name`, `model.kind`, `model.image.kind`, `model.text.kind`) to another value starts that
    section afresh: the arguments of one objective mean nothing to another.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(tree)))
    for override in sorted(overrides, key=lambda text: text.partition("=")[0] not in TAGS):
        key, equals, text = override.partition("=")
        if not equals or not key or "." not in key:
            raise UserError(f"override {override!r}: expected section.key=value{_hint(key)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None
        _set(result, key, value)
    return result


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {key}: {parent!r} is a value, not a section{_hint(key)}")
        node = child
    if key in TAGS and node.get(leaf) != value:
        node.clear()
    node[leaf] = value


def validate(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Check a tree of plain values.

    Raises:
        UserError: one line per mistake: key, value, what is accepted, the nearest valid key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(mistakes(error, source=source, hint=_hint)) from None


def _hint(key: str) -> str:
    """Name the valid key nearest to `key`: the same last part in another section, else the nearest full path."""
    known = known_keys()
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return nearest(same_leaf[0] if len(same_leaf) == 1 else key, same_leaf)
    direct = nearest(key, known)
    if "did you mean" in direct:
        return direct
    section = key.partition(".")[0]
    inside = [other for other in known if other.startswith(f"{section}.")]
    return nearest(key, inside) if inside else nearest(section, Config.model_fields)


def dump(config: Config) -> str:
    """Return the resolved configuration as YAML: what `load` reads back to the same tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
