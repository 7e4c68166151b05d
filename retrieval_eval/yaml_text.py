"""The one reader of YAML that users write: files, `section.key=value` and searches.

Plain data in bounded time and memory, or one line that says where and what. Beyond PyYAML's safe loader: a key that
stands twice is refused (the last one would win in silence), and so are nesting, aliases and integers without bounds.
Dates are text.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from allpairs.errors import UserError

LARGEST_FILE = 2**20
"""Bytes. The largest of ours has a thousandth of it."""

DEEPEST = 40
"""Levels of nesting; a configuration has four."""

MOST_VALUES = 50_000
"""Keys and values once every alias is written out: ten lines of aliases may stand for a billion."""


def parse(text: str, source: str) -> Any:
    """Return the value that `text` says; an empty text says None.

    Raises:
        UserError: not YAML, a key twice, or too much of something; begins with `source`.
    """
    try:
        loader = _Loader(text, source)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def parse_file(path: Path) -> Any:
    """Return the value that a file says.

    Raises:
        UserError: as `parse`; a file that cannot be read, is no text, or is larger than any configuration.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE:,} bytes; is this a configuration?")
        text = content.decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: byte {error.start + 1:,} is not UTF-8") from None
    return parse(text, str(path))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self._source = source
        self._depth = 0
        self._written_out: dict[yaml.Node, int] = {}
        self._open: set[yaml.Node] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node while nesting is shallow enough for everything that walks the values later."""
        if self._depth > DEEPEST:
            raise UserError(f"{self._source}, line {self.line + 1}: nested deeper than {DEEPEST} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, and check it before any value is made of it."""
        node = super().get_single_node()
        if node is not None:
            self._check(node, "")
        return node

    def _check(self, node: yaml.Node, path: str) -> int:
        """Return how many values `node` stands for."""
        if node in self._open:
            raise UserError(f"{self._place(node)}: {path or 'the value'} contains itself")
        if node not in self._written_out:
            self._open.add(node)
            self._written_out[node] = 1 + sum(self._check(child, name) for child, name in self._children(node, path))
            self._open.remove(node)
        if self._written_out[node] > MOST_VALUES:
            raise UserError(f"{self._place(node)}: more than {MOST_VALUES:,} values once its aliases are written out")
        return self._written_out[node]

    def _children(self, node: yaml.Node, path: str) -> list[tuple[yaml.Node, str]]:
        if isinstance(node, yaml.SequenceNode):
            return [(child, f"{path}[{number}]") for number, child in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return []
        children = []
        lines: dict[Hashable, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            text = key.value if isinstance(key, yaml.ScalarNode) else "?"
            name = f"{path}.{text}" if path else text
            if isinstance(key, yaml.ScalarNode):
                said = text if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
                if said in lines:
                    where = f"line {line}" if lines[said] == line else f"lines {lines[said]} and {line}"
                    raise UserError(f"{self._source}: {name} stands twice, in {where}")
                lines[said] = line
            children += [(key, name), (value, name)]
        return children

    def _place(self, node: yaml.Node) -> str:
        return f"{self._source}, line {node.start_mark.line + 1}"

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node; one that doesn't fit its tag (`!!int x`) is a mistake of whoever wrote it."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            raise UserError(f"{self._place(node)}: {_short(node.value)} is no {tag}") from None

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """Make an integer of 64 bits; Python stops at 4,300 digits, everything else at these."""
        if len(node.value) <= 100:
            number: int = self.construct_yaml_int(node)
            if -(2**63) <= number < 2**63:
                return number
        raise UserError(f"{self._place(node)}: {_short(node.value)} is an integer beyond 64 bits")


# Without dates: `run.name=2026-11-25` is a name.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _short(value: Any) -> str:
    if not isinstance(value, str):
        return "a collection"
    return repr(value) if len(value) <= 40 else f"{value[:20]!r}… ({len(value):,} characters)"
