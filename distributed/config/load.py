"""From a YAML file and `section.key=value` overrides to a checked `Config`; every mistake is one line."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from allpairs.errors import UserError, nearest
from distributed.config.keys import TAGS, known_keys
from distributed.config.mistakes import mistakes
from distributed.config.tree import Config
from retrieval_eval.yaml_text import parse, parse_file


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `overrides` in order and check the result.

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible value; one line per mistake.
    """
    return validate(apply(read(path), [override(text) for text in overrides]), source=str(path))


def read(path: Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    try:
        there = path.is_file()
    except OSError:  # a name that no file system takes
        there = False
    if not there:
        neighbours = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such config file{nearest(str(path), neighbours) if neighbours else ''}")
    tree = parse_file(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def override(text: str) -> tuple[str, Any]:
    """Split `section.key=value`, or `section={key: value, ...}`; the value is YAML (`null`, `[1, 2]`, `true`, `3e-4`).

    Raises:
        UserError: it has another form, or its value is no YAML.
    """
    key, equals, given = text.partition("=")
    value = parse(given, f"override {key}") if equals else None
    if not equals or not ("." in key.strip(".") or key in Config.model_fields):
        raise UserError(f"override {text!r}: expected section.key=value{_hint(key, value)}")
    return key, value


def apply(tree: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a copy of `tree` with every key of `changes` set to its value, of one key the last.

    A key may name a section: its value takes the place of all the section holds, and keys below it refine that,
    wherever they stand. Setting a tag (`objective.name`, `model.kind`, `model.image.kind`, `model.text.kind`) to
    another value starts that section afresh: the arguments of one objective mean nothing to another.
    """
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for key, value in sorted(changes, key=lambda change: (change[0].count("."), change[0] not in TAGS)):
        if key in Config.model_fields and not isinstance(value, Mapping):
            example = min(other for other in known_keys() if other.startswith(f"{key}."))
            raise UserError(f"{key}={value!r}: {key} is a section; accepted: {key}={{...}}, or a key of it ({example})")
        _set(result, key, copy.deepcopy(value))
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
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(mistakes(error, source=source, hint=_hint)) from None
    # Where the tree takes any value (a backbone's own arguments), no type has looked at its numbers.
    for key, value in _leaves(config.model_dump(), ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{source}: {key}={value!r} is not accepted: input should be a finite number")
    return config


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for number, child in enumerate(node):
            yield from _leaves(child, f"{path}[{number}]")
    else:
        yield path, node


def _hint(key: str, value: Any = None) -> str:
    """Name the nearest valid key: the same last part in another section, else the nearest section or full path.

    What holds keys of its own is a section first.
    """
    of_sections = nearest(key, Config.model_fields)
    if isinstance(value, Mapping) and "." not in key and "did you mean" in of_sections:
        return of_sections
    known = known_keys()
    if key in known:
        return f"; it is of another {key.rpartition('.')[0]}.kind"
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    if same_leaf:
        return nearest(same_leaf[0] if len(same_leaf) == 1 else key, same_leaf)
    for choices in (known,) if "." in key else (Config.model_fields, known):
        if "did you mean" in (direct := nearest(key, choices)):
            return direct
    section = key.partition(".")[0]
    inside = [other for other in known if other.startswith(f"{section}.")]
    return nearest(key, inside) if inside else nearest(section, Config.model_fields)


def dump(config: Config) -> str:
    """Return the resolved configuration as YAML: what `load` reads back to the same tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
