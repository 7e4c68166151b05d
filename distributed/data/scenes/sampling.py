"""Which scenes exist: drawn at random, each with nine neighbours that differ from it in exactly one attribute."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "hexagon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "large")
FILLS = ("solid", "outlined", "striped")
BACKGROUNDS = ("white", "grey", "cream", "pale blue")
FAMILY = 10

# Arrangements by number of things. In a nest the first thing is inside the second: sizes follow from that.
ARRANGEMENTS: dict[int, tuple[str, ...]] = {
    1: ("centre", "top left", "top right", "bottom left", "bottom right"),
    2: ("left", "above", "on", "diagonal", "nest"),
    3: ("row", "column", "pyramid", "nest left", "nest right"),
    4: ("grid", "two nests"),
}
_NESTED = {"nest": ((0, 1),), "nest left": ((0, 1),), "nest right": ((0, 1),), "two nests": ((0, 1), (2, 3))}
_DECK_COPIES = {1: 1, 2: 2, 3: 3, 4: 5}  # how often an arrangement of 1, 2, 3, 4 things comes in a round of families


@dataclass(frozen=True)
class Thing:
    """One shape."""

    shape: str
    colour: str
    size: str
    fill: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows; where exactly, and in which shade, is drawn when it is rendered."""

    arrangement: str
    things: tuple[Thing, ...]
    background: str

    @property
    def nests(self) -> tuple[tuple[int, int], ...]:
        """Pairs (inner, outer) of things that are inside one another."""
        return _NESTED.get(self.arrangement, ())

    def as_dict(self) -> dict[str, Any]:
        """Return the scene as JSON-ready values."""
        return dataclasses.asdict(self)


def sample_families(seed: int, sizes: dict[str, int]) -> dict[str, list[tuple[Scene, int, str]]]:
    """Return per split `sizes[split]` triples (scene, number of its family, attribute changed from the family's first).

    All scenes are different, over all splits.
    """
    draw = random.Random(f"scenes/{seed}")
    used: set[Scene] = set()
    splits: dict[str, list[tuple[Scene, int, str]]] = {}
    for split, size in sizes.items():
        assert size % FAMILY == 0
        splits[split] = []
        deck: list[str] = []
        for family in range(size // FAMILY):
            deck = deck or _shuffled_deck(draw)
            arrangement = deck.pop()
            while (first := _draw_scene(draw, arrangement)) in used:
                pass
            used.add(first)
            splits[split].append((first, family, "nothing"))
            while len(splits[split]) % FAMILY:
                changed, scene = _change(draw, first)
                if scene not in used and _possible(scene):
                    used.add(scene)
                    splits[split].append((scene, family, changed))
    return splits


def _shuffled_deck(draw: random.Random) -> list[str]:
    """Return a round of arrangements, so that every kind of scene occurs in every split."""
    deck = [name for count, names in ARRANGEMENTS.items() for name in names for _ in range(_DECK_COPIES[count])]
    draw.shuffle(deck)
    return deck


def _draw_scene(draw: random.Random, arrangement: str) -> Scene:
    count = next(count for count, names in ARRANGEMENTS.items() if arrangement in names)
    while True:
        things = [
            Thing(draw.choice(SHAPES), draw.choice(COLOURS), draw.choice(SIZES), draw.choice(FILLS))
            for _ in range(count)
        ]
        scene = Scene(arrangement, tuple(things), draw.choice(BACKGROUNDS))
        for inner, outer in scene.nests:
            things[inner] = dataclasses.replace(things[inner], size="small")
            things[outer] = dataclasses.replace(things[outer], size="large", fill="solid")
        scene = dataclasses.replace(scene, things=tuple(things))
        if _possible(scene):
            return scene


def _change(draw: random.Random, scene: Scene) -> tuple[str, Scene]:
    """Return the name of one attribute and a copy of the scene with another value for it."""
    name = draw.choice(("colour", "shape", "size", "fill", "relation", "relation", "background"))
    if name == "background":
        return name, dataclasses.replace(scene, background=_other(draw, BACKGROUNDS, scene.background))
    if name == "relation":
        if len(scene.things) > 1 and draw.random() < 0.5:  # the same things with two of them exchanged
            places = list(scene.things)
            i, j = draw.sample(range(len(places)), 2)
            places[i], places[j] = places[j], places[i]
            return name, dataclasses.replace(scene, things=tuple(places))
        arrangement = _other(draw, ARRANGEMENTS[len(scene.things)], scene.arrangement)
        return name, dataclasses.replace(scene, arrangement=arrangement)
    which = draw.randrange(len(scene.things))
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "fill": FILLS}[name]
    thing = scene.things[which]
    thing = dataclasses.replace(thing, **{name: _other(draw, values, getattr(thing, name))})
    return name, dataclasses.replace(scene, things=(*scene.things[:which], thing, *scene.things[which + 1 :]))


def _other(draw: random.Random, values: tuple[str, ...], value: str) -> str:
    return draw.choice([v for v in values if v != value])


def _possible(scene: Scene) -> bool:
    """Whether every nest has a small thing visible inside a large solid one."""
    things = scene.things
    return all(
        things[inner].size == "small"
        and things[outer].size == "large"
        and things[outer].fill == "solid"
        and things[inner].colour != things[outer].colour
        for inner, outer in scene.nests
    )
