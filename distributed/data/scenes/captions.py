"""Five captions per scene, as different people would put it: two say everything, three leave something out."""

import random

from distributed.data.scenes.sampling import Scene, Thing

_NOUNS = {
    "circle": ("circle", "disc"), "square": ("square", "box"), "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"), "star": ("star",), "heart": ("heart",), "cross": ("cross", "plus sign"),
    "hexagon": ("hexagon",),
}  # fmt: skip
_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_FILLS = {"solid": ("", "", "solid", "filled"), "outlined": ("outlined", "hollow"), "striped": ("striped", "stripy")}
_COLOURS = {"purple": ("purple", "violet"), "black": ("black", "dark")}
_NUMBERS = ("one shape", "two shapes", "three shapes", "four shapes")
_PLACES = {
    "centre": ("in the centre", "in the middle"),
    "top left": ("in the top left corner", "at the upper left"),
    "top right": ("in the top right corner", "at the upper right"),
    "bottom left": ("in the bottom left corner", "at the lower left"),
    "bottom right": ("in the bottom right corner", "at the lower right"),
}
# relation(a, b) -> how to say it of a, how to say it of b
_SAYINGS = {
    "left": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over"), ("below", "under", "beneath")),
    "on": (("on top of", "standing on", "resting on"), ("holding up", "directly under", "carrying")),
    "diagonal": (("up and to the left of", "diagonally above"), ("down and to the right of", "diagonally below")),
    "in": (("inside", "within", "in front of"), ("around", "surrounding", "behind")),
}
# Per arrangement the relations (a, relation, b) that determine it.
_RELATIONS: dict[str, tuple[tuple[int, str, int], ...]] = {
    "left": ((0, "left", 1),),
    "above": ((0, "above", 1),),
    "on": ((0, "on", 1),),
    "diagonal": ((0, "diagonal", 1),),
    "nest": ((0, "in", 1),),
    "row": ((0, "left", 1), (1, "left", 2)),
    "column": ((0, "above", 1), (1, "above", 2)),
    "pyramid": ((1, "left", 2), (0, "above", 1), (0, "above", 2)),
    "nest left": ((0, "in", 1), (1, "left", 2)),
    "nest right": ((0, "in", 1), (2, "left", 1)),
    "grid": ((0, "left", 1), (2, "left", 3), (0, "above", 2)),
    "two nests": ((0, "in", 1), (2, "in", 3), (1, "left", 3)),
}


def captions(scene: Scene, seed: str) -> list[str]:
    """Return the five captions; wording is drawn by `seed`."""
    draw = random.Random(f"captions/{seed}")
    return [_full(scene, draw, turned=False), _full(scene, draw, turned=True), _list(scene, draw),
            _one_relation(scene, draw), _glimpse(scene, draw)]  # fmt: skip


def _thing(thing: Thing, draw: random.Random, *, parts: str = "size fill colour", article: str = "a") -> str:
    words = []
    if "size" in parts:
        words.append(draw.choice(_SIZES[thing.size]))
    if "fill" in parts:
        words.append(draw.choice(_FILLS[thing.fill]))
    if "colour" in parts:
        words.append(draw.choice(_COLOURS.get(thing.colour, (thing.colour,))))
    words.append(draw.choice(_NOUNS[thing.shape]))
    phrase = " ".join(word for word in words if word)
    if article == "a" and phrase[0] in "aeiou":
        article = "an"
    return f"{article} {phrase}"


def _said(relation: str, draw: random.Random, *, turned: bool) -> str:
    return draw.choice(_SAYINGS[relation][turned])


def _full(scene: Scene, draw: random.Random, *, turned: bool) -> str:
    """Every thing with all its attributes, every relation, the background; `turned` tells it from the other end."""
    if len(scene.things) == 1:
        text = f"{_thing(scene.things[0], draw)} {draw.choice(_PLACES[scene.arrangement])}"
    else:
        relations = list(_RELATIONS[scene.arrangement])
        if turned:
            relations.reverse()
        mentioned: set[int] = set()
        clauses = []
        for a, relation, b in relations:
            first, second = (b, a) if turned else (a, b)
            names = []
            for i in (first, second):
                again = i in mentioned
                parts = "colour" if again else "size fill colour"
                names.append(_thing(scene.things[i], draw, parts=parts, article="the" if again else "a"))
                mentioned.add(i)
            clauses.append(f"{names[0]} {_said(relation, draw, turned=turned)} {names[1]}")
        text = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    if turned:
        return f"on a {scene.background} background, {text}"
    return (
        f"{text} on a {scene.background} background"
        if draw.random() < 0.5
        else f"{text}, {scene.background} background"
    )


def _list(scene: Scene, draw: random.Random) -> str:
    """What is there, in any order, not where; sizes left out."""
    things = list(scene.things)
    draw.shuffle(things)
    names = [_thing(thing, draw, parts="fill colour") for thing in things]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return text if draw.random() < 0.5 else f"{text} on {scene.background}"


def _one_relation(scene: Scene, draw: random.Random) -> str:
    """Two of the things by colour and shape, and how they stand."""
    if len(scene.things) == 1:
        return (
            f"there is {_thing(scene.things[0], draw, parts='size colour')} {draw.choice(_PLACES[scene.arrangement])}"
        )
    a, relation, b = draw.choice(_RELATIONS[scene.arrangement])
    turned = draw.random() < 0.5
    first, second = (b, a) if turned else (a, b)
    return (
        f"there is {_thing(scene.things[first], draw, parts='colour')} {_said(relation, draw, turned=turned)} "
        f"{_thing(scene.things[second], draw, parts='colour')}"
    )


def _glimpse(scene: Scene, draw: random.Random) -> str:
    """How many, and one of them in detail."""
    count = len(scene.things)
    thing = _thing(draw.choice(scene.things), draw)
    if count == 1:
        return f"only {thing} on {scene.background}"
    return f"{_NUMBERS[count - 1]}, one of them {thing}"
