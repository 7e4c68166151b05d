"""Whose folder a search may write into: a new one, or its own with --resume."""

from pathlib import Path

import pytest
import yaml

from allpairs.errors import UserError
from tune.config import Search
from tune.runner import open_folder


def search(folder: Path, **more: object) -> Search:
    declared = {"name": "s", "base": "b.yaml", "dir": folder, "space": {"train.seed": {"grid": [0, 1]}}}
    return Search.model_validate(declared | more)


def test_new_search_writes_what_it_is(tmp_path: Path) -> None:
    open_folder(search(tmp_path), resume=False)
    noted = yaml.safe_load((tmp_path / "s" / "search.yaml").read_text())
    assert noted["space"] == {"train.seed": {"grid": [0, 1]}}
    assert Search.model_validate(noted) == search(tmp_path)


def test_existing_search_is_not_overwritten_but_resumed(tmp_path: Path) -> None:
    open_folder(search(tmp_path), resume=False)
    with pytest.raises(UserError, match="--resume continues it"):
        open_folder(search(tmp_path), resume=False)
    open_folder(search(tmp_path), resume=True)


def test_resumed_search_must_be_the_same_but_for_its_plot(tmp_path: Path) -> None:
    open_folder(search(tmp_path), resume=False)
    open_folder(search(tmp_path, plot="curves"), resume=True)
    with pytest.raises(UserError, match=r"other settings \(space: .*\[0, 1\].*before.*\[0, 2\]"):
        open_folder(search(tmp_path, space={"train.seed": {"grid": [0, 2]}}), resume=True)
    with pytest.raises(UserError, match="metric: None before, 'val/i2t/r1' now"):
        open_folder(search(tmp_path, metric="val/i2t/r1"), resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no search"):
        open_folder(search(tmp_path), resume=True)
    assert not (tmp_path / "s").exists()


def test_search_of_an_earlier_version_is_not_resumed(tmp_path: Path) -> None:
    open_folder(search(tmp_path), resume=False)
    trial = tmp_path / "s/ray/7f_00000"
    trial.mkdir(parents=True)
    (trial / "params.json").write_text('{"point": "json:{}"}')
    open_folder(search(tmp_path), resume=True)
    (trial / "params.json").write_text('{"train.seed": 0}')
    with pytest.raises(UserError, match="is of an earlier version; accepted: another name"):
        open_folder(search(tmp_path), resume=True)
