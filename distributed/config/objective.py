"""The `objective` section: any objective's name and arguments, checked against the objective itself."""

from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from allpairs.errors import UserError, nearest
from allpairs.objectives import arguments, hint, make, names

_FINITE = ConfigDict(allow_inf_nan=False)


def objectives_over_sets() -> list[str]:
    """Return the names of the objectives that take any number of captions per image."""
    return [name for name in names() if not make(name).own_positive]


def objectives_with_margins() -> list[str]:
    """Return the names of the objectives that take one margin per pair."""
    return [name for name in names() if make(name).takes_margins]


def refuse_for_ncr(name: str, given: dict[str, Any]) -> None:
    """Raise ValueError unless the objective has a margin that `train.recipe: ncr` can scale by each pair's label."""
    objective = make(name, **given)
    if not objective.takes_margins:
        raise ValueError(
            f"train.recipe=ncr: objective.name={name} has no margin for each pair; accepted with it: "
            f"{', '.join(objectives_with_margins())}"
        )
    margin = vars(objective)["margin"]
    if margin <= 0:
        raise ValueError(
            f"objective.margin={margin}: train.recipe=ncr scales the margin of each pair; accepted: above 0"
        )


def check_objective(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with each argument converted to the type its objective declares.

    Raises:
        ValueError: unknown objective or argument (names the nearest), wrong type, impossible value.
    """
    name = values.get("name", "unified")
    if name not in names():
        raise ValueError(f"objective.name={name!r} is unknown{hint(str(name))}")
    declared = arguments(name)
    checked: dict[str, Any] = {"name": name}
    for key, value in values.items():
        if key == "name":
            continue
        if key not in declared:
            raise ValueError(f"objective.{key}: {name} has no such argument (value {value!r}){nearest(key, declared)}")
        try:
            checked[key] = TypeAdapter(declared[key].annotation, config=_FINITE).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ValueError(f"objective.{key}={value!r} is not accepted: {message[:1].lower()}{message[1:]}") from None
    try:
        make(**checked)
    except UserError as error:
        raise ValueError(f"objective: {error}") from None
    return checked
