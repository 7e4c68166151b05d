"""A run directory that cannot be written, or is damaged, is told in one line before anything starts."""

import os
import re
import shutil

import pytest

from allpairs.errors import UserError
from distributed import launch, run_directory
from distributed.launch import set_up
from distributed.loop import Training
from distributed.world import World
from tests.distributed.test_loop import CPU, train


def test_a_run_directory_that_cannot_be_written_is_one_line(tiny_config, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder, why in ((tmp_path / "file", "Not a directory"), (tmp_path / "file/deeper", "Not a directory")):
        config = tiny_config(run={"name": "x", "dir": str(folder)})
        with pytest.raises(UserError, match=rf"^run\.dir={folder}: .* cannot be written \({why}\); accepted is a fol"):
            set_up(config, resume="auto")
    with pytest.raises(UserError, match=rf"^run\.dir={tmp_path}: {tmp_path}/file is a file; choose another"):
        set_up(tiny_config(run={"name": "file", "dir": str(tmp_path)}), resume=False)


@pytest.mark.parametrize(("module", "function"), [(run_directory, "write_text"), (launch, "save_tokens")])
def test_a_full_disk_is_one_line_when_a_run_is_laid_out(tiny_config, monkeypatch, module, function) -> None:
    def full(path, *arguments):
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(module, function, full)
    config = tiny_config()
    place = re.escape(str(config.run_dir))
    with pytest.raises(UserError, match=rf"^run\.dir=.*: {place}\S* cannot be written \(No space left on device\)"):
        set_up(config, resume=False)


def test_a_taken_name_is_refused_before_its_data_are_compared(tiny_config, tiny, tmp_path) -> None:
    set_up(tiny_config(), resume=False)
    shutil.copytree(tiny, tmp_path / "data")
    shard = tmp_path / "data/train/shard-000000.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(UserError, match="exists but is not finished"):
        set_up(tiny_config(data={"root": str(tmp_path / "data")}), resume=False)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"step": "x"}', b'{"step": null}', b"\xff"])
def test_the_driver_leaves_a_damaged_position_to_the_workers(tiny_config, damage) -> None:
    run, _, _ = train(tiny_config(train={"checkpoint_every_steps": 3, "stop_after_epochs": 1}))
    (run.checkpoints / "last/position.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"last/position\.json"):
        run.last_step()
    set_up(tiny_config(), resume="auto")
    assert Training(tiny_config(), World.join(CPU), lambda _: None).progress.step == 3
    assert run.last_step() == 3
