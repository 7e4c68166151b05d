"""The dotted names of all configuration keys, for hints; read off the tree's own JSON schema."""

from functools import cache
from typing import Any, get_args

from allpairs.models.spec import ImageSpec, ModelSpec, TextSpec, kinds
from allpairs.objectives import arguments, names

TAGS = ("objective.name", "model.kind", "model.image.kind", "model.text.kind")
"""Keys that choose which other keys their section has."""

KINDS = {
    section: tuple(kind for member in get_args(get_args(union)[0]) for kind in kinds(member))
    for section, union in {"model": ModelSpec, "image": ImageSpec, "text": TextSpec}.items()
}
"""The tags of each section that is a union of kinds."""


@cache
def known_keys() -> frozenset[str]:
    """Return every key that some valid configuration has, e.g. `optimizer.lr`."""
    from distributed.config.tree import Config

    schema = Config.model_json_schema()
    keys: set[str] = set()
    _walk(schema, schema, "", keys)
    for name in names():
        keys.update(f"objective.{argument}" for argument in arguments(name))
    return frozenset(keys)


def _walk(node: dict[str, Any], schema: dict[str, Any], prefix: str, keys: set[str]) -> None:
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for branch in (*node.get("oneOf", ()), *node.get("anyOf", ()), *node.get("allOf", ())):
        _walk(branch, schema, prefix, keys)
    for name, child in node.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        before = len(keys)
        _walk(child, schema, path, keys)
        if len(keys) == before and prefix:
            keys.add(path)
