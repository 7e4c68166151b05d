"""Altered data never train silently: the index is compared at every open, shards once and after each change."""

import fcntl
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from allpairs.errors import UserError
from distributed.config.tree import Data
from distributed.data import open_dataset, open_split, verify
from distributed.data.describe import describe_folder
from distributed.data.verify import STAMPS
from distributed.data.writer import write_split
from distributed.launch import set_up
from distributed.loop import Training
from distributed.world import Stopped, World
from tests.distributed.test_loop import CPU, train


@pytest.fixture
def data(tiny, tmp_path) -> Path:
    """A copy of the tiny data: its training split has three shards."""
    shutil.copytree(tiny, tmp_path / "data", ignore=shutil.ignore_patterns(STAMPS))
    return tmp_path / "data"


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that were compared, as they are."""
    names = []
    sha256 = verify.sha256

    def noted(path, tell):
        names.append(path.name)
        return sha256(path, tell)

    monkeypatch.setattr(verify, "sha256", noted)
    return names


def flip(path: Path, place: float, *, silently: bool = False) -> None:
    """Change one byte, at this part of the file; `silently`: size and time stay."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + (0 if silently else 1_000_000)))


def opened(data: Path, how: str = "once", **more):
    return open_split(Data(root=data, verify=how), "train", anew=how == "always", **more)


SHARDS = ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]


@pytest.mark.parametrize("place", [0, 0.1, 0.3, 0.5, 0.7, 0.9, 1])
def test_a_flipped_byte_of_the_index_is_refused_wherever_it_is_opened(data, tiny_config, place) -> None:
    flip(data / "train/index.arrow", place, silently=True)
    refused = r"train/index\.arrow: not the index that manifest\.json was written with: it was altered"
    with pytest.raises(UserError, match=refused):
        open_dataset(data / "train")
    with pytest.raises(UserError, match=refused):
        describe_folder(data / "train")
    for how in ("once", "always", "never"):
        with pytest.raises(UserError, match=rf"^data\.train: .*{refused}"):
            set_up(tiny_config(data={"root": str(data), "verify": how}), resume=False)
    assert not tiny_config().run_dir.exists()


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_of_a_shard_is_refused_before_a_run_is_laid_out(data, tiny_config, place) -> None:
    config = tiny_config(data={"root": str(data)})
    shard = data / "val" / SHARDS[0]
    flip(shard, place)
    with pytest.raises(UserError, match=rf"^data\.val: {shard}: not the bytes that .*data\.verify=never trains on it"):
        set_up(config, resume=False)
    assert not config.run_dir.exists()
    flip(shard, place)
    set_up(config, resume=False)


def test_shards_are_compared_once_and_after_each_change(data, hashed) -> None:
    opened(data)
    assert sorted(hashed) == SHARDS
    hashed.clear()
    opened(data)
    assert hashed == []
    os.utime(data / "train" / SHARDS[1])
    opened(data)
    assert hashed == [SHARDS[1]]
    hashed.clear()
    opened(data, "always")
    assert sorted(hashed) == SHARDS
    hashed.clear()
    flip(data / "train" / SHARDS[2], 0.5)
    opened(data, "never")
    assert hashed == []
    with pytest.raises(UserError, match=SHARDS[2]):
        opened(data)
    assert not [path for path in (data / "train").iterdir() if path.name.startswith(".")]


def test_what_changes_neither_size_nor_time_is_seen_by_always_alone(data) -> None:
    opened(data)
    flip(data / "train" / SHARDS[0], 0.5, silently=True)
    opened(data)
    with pytest.raises(UserError, match=SHARDS[0]):
        opened(data, "always")


def test_a_copy_is_compared_anew_and_stamps_that_are_none_are_not_believed(data, hashed, tmp_path) -> None:
    opened(data)
    shutil.copytree(data, tmp_path / "copy")  # with times and stamps
    hashed.clear()
    opened(tmp_path / "copy")
    assert sorted(hashed) == SHARDS
    stamps = data / "train" / STAMPS
    folder = json.loads(stamps.read_text())["folder"]
    for torn in ("", stamps.read_text()[:-9], "[1]", '{"folder": 1}', json.dumps({"folder": folder, "shards": [7]})):
        stamps.write_text(torn)
        hashed.clear()
        opened(data)
        assert sorted(hashed) == SHARDS, torn


def test_stamps_of_a_folder_that_cannot_be_written_lie_in_the_cache(data, hashed, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (data / "train" / STAMPS).mkdir()  # in their place: root may write everywhere else
    opened(data)
    assert len(list((tmp_path / "cache/allpairs/verified").glob("*.json"))) == 1
    hashed.clear()
    opened(data)
    assert hashed == []


def test_a_long_comparison_says_what_it_does_and_how_far_it_is(data, monkeypatch) -> None:
    said: list[str] = []
    opened(data, say=said.append)
    assert said == []
    monkeypatch.setattr(verify, "_FIRST", 0.0)
    monkeypatch.setattr(verify, "_EVERY", 0.0)
    opened(data, "always", say=said.append)
    total = sum((data / "train" / name).stat().st_size for name in SHARDS) / 1e6
    assert said[0].startswith(f"data.train: comparing {total:.1f} MB in 3 shard(s) with the hashes of the manifest")
    assert said[-2] == f"data.train: {total:.1f} MB of {total:.1f} MB compared"
    assert said[-1] == f"data.train: as it was built, {total:.1f} MB compared in 0 s"


def test_who_comes_second_waits_and_compares_nothing(data, hashed) -> None:
    said: list[str] = []
    waiting = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    with (data / "train/manifest.json").open("rb") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: opened(data, say=say))
        second.start()
        assert waiting.wait(30)
        assert hashed == []
        stamps = {}
        for shard in open_dataset(data / "train").manifest.shards:
            state = (data / "train" / shard.file).stat()
            stamps[shard.file] = [state.st_size, state.st_mtime_ns, shard.sha256]
        (data / "train" / STAMPS).write_text(json.dumps({"folder": str(data / "train"), "shards": stamps}))
    second.join(30)
    assert said == ["data.train: another process compares its shards with their hashes; waiting for it"]
    assert hashed == []


@pytest.mark.parametrize("how", ["once", "always"])
def test_workers_go_by_what_the_driver_found_and_compare_what_changed_since(data, tiny_config, hashed, how) -> None:
    config = tiny_config(data={"root": str(data), "verify": how})
    set_up(config, resume=False)
    assert sorted(set(hashed)) == SHARDS
    for split in ("train", "val", "test"):
        (data / split / STAMPS).unlink()  # as where the data folder cannot be written, and homes are not shared
    hashed.clear()
    Training(config, World.join(CPU), lambda _: None)
    assert hashed == []
    set_up(config, resume=True)
    assert sorted(set(hashed)) == (SHARDS if how == "always" else [])
    flip(data / "train" / SHARDS[1], 0.5)
    with pytest.raises(Stopped, match=rf"^{data}/train/{SHARDS[1]}: not the bytes that "):
        Training(config, World.join(CPU), lambda _: None)


def test_a_split_altered_while_a_run_goes_on_stops_it_with_one_line(data, tiny_config) -> None:
    config = tiny_config(data={"root": str(data)}, train={"stop_after_epochs": 1})
    train(config)
    training = Training(tiny_config(data={"root": str(data)}), World.join(CPU), lambda _: None)
    flip(data / "val" / SHARDS[0], 0.5)
    with pytest.raises(Stopped, match=rf"^{data}/val/{SHARDS[0]}: not the bytes that "):
        training.run()


@pytest.mark.parametrize("how", ["once", "never"])
def test_a_run_does_not_go_on_with_data_that_were_built_anew(data, tiny_config, tiny_samples, how) -> None:
    train(tiny_config(data={"root": str(data), "verify": how}, train={"stop_after_epochs": 1}))
    config = tiny_config(data={"root": str(data), "verify": how})
    set_up(config, resume=True)
    again, built = tiny_samples(held_out=True), data / "val"
    shutil.rmtree(built)
    write_split(built, again, name="tiny", split="val", source={}, shard_samples=40)
    set_up(config, resume=True)  # the same content, whenever it was built
    shutil.rmtree(built)
    if how == "once":  # another picture of the same size under the same key: the index cannot tell
        picture = bytearray(again[0].data)
        picture[-20] ^= 1
        again[0] = replace(again[0], data=bytes(picture))
    else:
        again[0] = replace(again[0], captions=["another caption"])
    write_split(built, again, name="tiny", split="val", source={}, shard_samples=40)
    with pytest.raises(UserError, match=rf"^--resume: data\.val: {built} was built anew with other content since"):
        set_up(config, resume=True)
