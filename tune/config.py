"""The file of a search: which run it varies, how, and how long."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from allpairs.errors import UserError, nearest
from distributed.config import Config
from distributed.config.load import read
from distributed.config.mistakes import mistakes
from distributed.config.tree import Folder
from retrieval_eval.yaml_text import parse
from tune.space import Domain, check_conditions

SEED = "train.seed"
RESERVED = ("run", "run.name", "run.dir")


class Search(BaseModel):
    """A search as its YAML file declares it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)
    """Folder of the search below `dir`, and the W&B group of its trials."""
    base: Path
    """Configuration of the run whose keys are searched."""
    dir: Folder = Path("runs/tune")
    """Folder that holds all searches. On a cluster: storage that every node sees under the same path."""
    overrides: dict[str, Any] = {}
    """Configuration keys set for all trials, e.g. `train.epochs: 8`; a whole section may be given too."""
    space: dict[str, Domain] = Field(min_length=1)
    """Configuration keys (or a whole section, e.g. `objective`) and the values to try."""
    references: tuple[dict[str, Any], ...] = ()
    """Settings to compare with, each some configuration keys as in `overrides`: trained and listed like the others,
    drawn as horizontal lines."""
    algorithm: Literal["grid", "one_at_a_time", "random", "optuna"] = "grid"
    """grid: every combination; one_at_a_time: each key's values, the other keys as the configuration has them; random:
    draws; optuna: draws that learn from the trials before (TPE)."""
    trials: int | None = Field(None, ge=1)
    """Number of trials, for random and optuna. Random draws no setting twice, so that a small space may have fewer."""
    metric: str = "val/rsum"
    """What is compared: a metric of the evaluations during training."""
    mode: Literal["max", "min"] = "max"
    """Whether more of `metric` is better."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: trials that lag behind at the same epoch are stopped early."""
    grace: int = Field(2, ge=1)
    """For asha: epochs every trial gets."""
    reduction: float = Field(3, gt=1)
    """For asha: one in this many trials goes on from one rung to the next."""
    max_concurrent_trials: int = Field(1, ge=1)
    """Trials at a time; each needs `cluster.workers` workers."""
    seed: int = Field(0, ge=0)
    """Decides what random and optuna draw."""
    seeds: int = Field(1, ge=1, le=100)
    """Trials of each setting, with `train.seed`, `train.seed + 1`, …; tables then show mean ± standard deviation."""
    plot: Literal["landscape", "curves"] = "landscape"
    """landscape: the best metric over the searched keys; curves: loss, RSUM and similarities against epochs."""

    @field_validator("space", "overrides")
    @classmethod
    def _leaves_names_to_us(cls, keys: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key in RESERVED:
                raise ValueError(f"{key} is set by the search (from its own name and dir)")
        return keys

    @field_validator("references")
    @classmethod
    def _references_say_something(cls, references: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, reference in enumerate(references):
            if not reference:
                raise ValueError(f"references[{number}]: empty; accepted are configuration keys with their values")
            cls._leaves_names_to_us(reference)
        return references

    @model_validator(mode="after")
    def _algorithm_fits_space(self) -> Self:
        for key, domain in self.space.items():
            if self.draws and domain.kind == "grid":
                raise ValueError(f"space.{key}: grid needs algorithm grid; {self.algorithm} takes choice for a list")
            if not self.draws and domain.kind != "grid":
                raise ValueError(
                    f"space.{key}: {domain.kind} needs algorithm random or optuna; {self.algorithm} takes grid only"
                )
            if self.algorithm == "one_at_a_time" and domain.when:
                raise ValueError(
                    f"space.{key}.when: one_at_a_time varies no other key; accepted with grid, random, optuna"
                )
        check_conditions(self.space)
        if not self.draws and self.trials is not None:
            raise ValueError(f"trials: {self.algorithm} has as many trials as its lists make; leave it out")
        if self.draws and self.trials is None:
            raise ValueError(f"trials: missing; {self.algorithm} needs a number of trials")
        twice = sorted(self.space.keys() & self.overrides.keys())
        if twice and self.algorithm != "one_at_a_time":
            raise ValueError(f"{twice[0]} is both searched and overridden")
        return self

    @model_validator(mode="after")
    def _references_are_whole_runs(self) -> Self:
        if self.references and self.algorithm == "optuna":
            raise ValueError("references: optuna would learn from them; accepted with grid, one_at_a_time or random")
        if self.references and self.scheduler != "none":
            raise ValueError(f"references: {self.scheduler} would stop them early; accepted is scheduler none")
        return self

    @model_validator(mode="after")
    def _seeds_are_whole_settings(self) -> Self:
        if self.seeds == 1:
            return self
        if SEED in self.space or any(SEED in reference for reference in self.references):
            raise ValueError(f"seeds: {SEED} is searched already; accepted is 1, or another key in its place")
        if self.algorithm == "optuna":
            raise ValueError("seeds: optuna learns from single trials; accepted is 1, or algorithm grid or random")
        if self.scheduler != "none":
            raise ValueError(f"seeds: {self.scheduler} would stop some seeds of a setting; accepted is scheduler none")
        return self

    @property
    def draws(self) -> bool:
        """Whether its points are drawn, rather than all of its lists tried."""
        return self.algorithm in ("random", "optuna")

    @property
    def folder(self) -> Path:
        """Where the search keeps its trials and its report."""
        return self.dir / self.name

    @property
    def events(self) -> Path:
        """What happened in the search, one row per event."""
        return self.folder / "events.jsonl"

    def run_name(self, trial_id: str) -> str:
        """Name the run of a trial: the same after a restart, so that the restart goes on where it was."""
        return f"{self.name}-{trial_id}"

    def run_dir(self, trial_id: str) -> Path:
        """Return the run directory of a trial."""
        return self.folder / "trials" / self.run_name(trial_id)


def load_search(path: Path, arguments: Sequence[str] = ()) -> Search:
    """Read the search file and apply ``key=value`` arguments: its own keys, or configuration keys for all trials.

    Raises:
        UserError: unknown key (with the nearest), wrong type, a space that does not fit the algorithm.
    """
    tree = read(path)
    in_file = tree.get("overrides") or {}
    if not isinstance(in_file, dict):
        raise UserError(f"{path}: overrides={in_file!r} is not accepted: input should be keys of the configuration")
    overrides: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"argument {argument!r}: expected key=value")
        value = parse(text, f"argument {key}")
        if key.partition(".")[0] in Config.model_fields:
            overrides[key] = value
            # A section given here replaces what the file says of its keys too.
            in_file = {other: said for other, said in in_file.items() if not str(other).startswith(f"{key}.")}
        elif key in ("space", "overrides") or (key == "references" and value):
            raise UserError(f"argument {argument!r}: {key} is given in the file")
        elif key in Search.model_fields:
            tree[key] = value
        else:
            raise UserError(f"argument {argument!r}: unknown key{nearest(key, [*Search.model_fields, *_sections()])}")
    try:
        search = Search.model_validate(tree | {"overrides": in_file | overrides})
        return search.model_copy(update={"dir": search.dir.expanduser().resolve()})  # trials run elsewhere
    except ValidationError as error:
        raise UserError(mistakes(error, source=str(path), hint=_hint)) from None


def _sections() -> list[str]:
    from distributed.config.keys import known_keys

    return sorted(known_keys())


def _hint(key: str, value: Any) -> str:
    section, _, leaf = key.rpartition(".")
    return nearest(leaf, Domain.model_fields if section.startswith("space") else Search.model_fields)
