"""A checkpoint that is not what was written is never loaded, one that cannot be written leaves the others whole."""

import json
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from allpairs.errors import UserError
from allpairs.files import disk_is_full
from allpairs.hashes import HASHES, check_files
from distributed import checkpoints
from distributed.checkpoints import Checkpoints
from distributed.config import Config, load
from distributed.finish import complete
from distributed.launch import set_up
from distributed.loop import Training
from distributed.run_directory import RunDirectory
from distributed.worker import told_in_one_line
from distributed.world import Stopped, World
from retrieval_eval.run_files import read_rows
from tests.distributed.test_loop import CPU, assert_same_state, train

OPTIMIZER = "optimizer/rank-00000.safetensors"
FILES = (
    "model.safetensors",
    "model.json",
    "vocabulary.json",
    OPTIMIZER,
    "objective.safetensors",
    "position.json",
    HASHES,
)
# 103 images in batches of 22 are 5 steps an epoch: checkpoints of steps 3, 5 (the epoch's end: the best) and 6.
PART = {"checkpoint_every_steps": 3, "stop_after_epochs": 1.25}


@pytest.fixture
def part(tiny_config) -> RunDirectory:
    """A run that stopped after step 6: `last` is step 6, `previous` and `best` step 5."""
    run, _, _ = train(tiny_config("part", train=PART))
    assert names(run) == {"last": "step-00000006", "previous": "step-00000005", "best": "step-00000005"}
    return run


def names(run: RunDirectory) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in run.checkpoints.iterdir() if path.is_symlink()}


def steps(run: RunDirectory) -> set[str]:
    return {path.name for path in run.checkpoints.iterdir() if not path.is_symlink()}


def notes(run: RunDirectory) -> list[str]:
    return [row["text"] for row in read_rows(run.events) if row["event"] == "note"]


def damages(content: bytes) -> dict[str, bytes]:
    """What a torn write, a lost block or a flipped bit make of a file."""
    length = len(content)
    cut = {f"cut at {kept}": content[:kept] for kept in (0, 1, length // 2, length - 1)}
    flipped = {
        f"byte {place}": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        for place in (0, 9, length // 2, length - 2)
    }
    return cut | flipped | {"longer": content + b"\0"}


def assert_loaded(training: Training, folder: Path) -> None:
    """All of a checkpoint was loaded: weights, scale, optimiser and position, each from this folder."""
    weights, scale = training.encoder.state_dict(), training.strategy.step.objective.state_dict()
    for path, loaded in (("model.safetensors", weights), ("objective.safetensors", scale)):
        written = load_file(folder / path)
        assert written.keys() == loaded.keys()
        assert all(torch.equal(written[name], loaded[name]) for name in written)
    written = load_file(folder / OPTIMIZER)
    optimizer = training.strategy._optimizer
    for name, parameter in training.strategy.step.named_parameters():
        assert float(written[f"step/{name}"]) == float(optimizer.state[parameter]["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            loaded = optimizer.state[parameter][moment]
            assert torch.equal(written[f"{moment}/{name}@0"].view(loaded.shape), loaded)
    assert training.progress.step == json.loads((folder / "position.json").read_text())["step"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(part, tiny_config, name) -> None:
    damaged, before = part.checkpoints / "step-00000006", part.checkpoints / "step-00000005"
    content = (damaged / name).read_bytes()
    for what, now in damages(content).items():
        if now.strip() == content.strip() and name == HASHES:
            continue  # the line's end was cut: nothing is lost
        (damaged / name).write_bytes(now)
        told = len(notes(part))
        training = Training(tiny_config("part"), World.join(CPU), lambda _: None)
        assert training.progress.step == 5, what
        assert_loaded(training, before)
        (line,) = notes(part)[told:]
        assert line.startswith("checkpoint step-00000006 is not what was written (")
        assert name in line or name == HASHES  # what a flipped byte of the hashes says is of the files they name
        assert line.endswith("going on from the one before, step-00000005")
        assert "\n" not in line
        assert names(part)["last"] == "step-00000005"
        checkpoints_back(part)
    (damaged / name).write_bytes(content)
    assert_loaded(Training(tiny_config("part"), World.join(CPU), lambda _: None), damaged)


def checkpoints_back(run: RunDirectory) -> None:
    link = run.checkpoints / "last"
    link.unlink()
    link.symlink_to("step-00000006")


def test_after_falling_back_a_run_ends_bit_identical(part, tiny_config) -> None:
    whole, _, _ = train(tiny_config("whole"))
    path = part.checkpoints / "last" / OPTIMIZER
    path.write_bytes(path.read_bytes()[:-100])
    train(tiny_config("part"), resume=True)
    assert_same_state(whole, part)
    assert steps(part) == set(names(part).values())


def test_a_best_checkpoint_that_is_gone_is_chosen_anew(tiny_config) -> None:
    run, _, _ = train(tiny_config("part", train={"checkpoint_every_steps": 3, "stop_after_epochs": 1}))
    assert names(run) == {"last": "step-00000005", "previous": "step-00000003", "best": "step-00000005"}
    shutil.rmtree(run.checkpoints / "step-00000005")
    training = Training(tiny_config("part"), World.join(CPU), lambda _: None)
    assert (training.progress.step, training.progress.best_rsum) == (3, None)
    assert "step-00000005: not there" in notes(run)[-1]
    assert names(run) == {"last": "step-00000003", "previous": "step-00000003", "best": "step-00000003"}
    summary = complete(training)
    whole, expected, _ = train(tiny_config("whole"))
    assert_same_state(whole, run)
    assert summary["test/rsum"] == expected["test/rsum"]


def test_a_best_checkpoint_damaged_before_the_end_leaves_the_last(tiny_config) -> None:
    config = tiny_config("run")
    run = set_up(config, resume=False)
    training = Training(config, World.join(CPU), lambda _: None)
    training.run()
    (run.checkpoints / "best").unlink()
    (run.checkpoints / "best").symlink_to("step-00000010")
    (run.checkpoints / "best/model.safetensors").write_bytes(b"\0" * 100)
    assert training.checkpoints.load_best(training.strategy) == "last"
    assert "the best checkpoint cannot be used" in notes(run)[-1]
    path = run.checkpoints / "last/objective.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Stopped, match=r"model\.safetensors: 100 bytes.*; .*objective\.safetensors: .* bytes, but"):
        training.checkpoints.load_best(training.strategy)


def test_no_checkpoint_left_is_one_line_and_nothing_is_trained(part, tiny_config) -> None:
    for folder in steps(part):
        path = part.checkpoints / folder / "model.safetensors"
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(Stopped, match=r"^no checkpoint can be used: .*step-00000006.*step-00000005.*run\.name$"):
        Training(tiny_config("part"), World.join(CPU), lambda _: None)
    assert steps(part) == {"step-00000005", "step-00000006"}


def test_a_checkpoint_without_hashes_loads_and_says_that_it_is_not_verified(part, tiny_config) -> None:
    (part.checkpoints / "last" / HASHES).unlink()
    training = Training(tiny_config("part"), World.join(CPU), lambda _: None)
    assert training.progress.step == 6
    assert notes(part) == ["checkpoint step-00000006 was written without hashes, so its files are not verified"]
    path = part.checkpoints / "last" / OPTIMIZER
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(Stopped, match=r"rank-00000.*: not a readable optimiser state"):
        Training(tiny_config("part"), World.join(CPU), lambda _: None)


def test_three_checkpoints_are_kept_at_most(tiny_config) -> None:
    run, _, _ = train(tiny_config(train={"checkpoint_every_steps": 1}))
    assert steps(run) == set(names(run).values())
    assert len(steps(run)) <= 3
    assert (names(run)["last"], names(run)["previous"]) == ("step-00000015", "step-00000014")


def test_a_checkpoint_by_the_clock_changes_nothing_that_is_learned(tiny_config, monkeypatch) -> None:
    saved = []
    save = Checkpoints.save

    def counted(self, strategy, progress, *, best):
        saved.append(progress.step)
        save(self, strategy, progress, best=best)

    monkeypatch.setattr(Checkpoints, "save", counted)
    whole, _, _ = train(tiny_config("whole", train={"checkpoint_every_minutes": None}))
    assert saved == [5, 10, 15]
    saved.clear()
    often, _, _ = train(tiny_config("often", train={"checkpoint_every_minutes": 1e-9}))
    assert saved == list(range(1, 16))
    assert_same_state(whole, often)
    saved.clear()
    train(tiny_config("seldom"))
    assert tiny_config().train.checkpoint_every_minutes == 10
    assert saved == [5, 10, 15]


def room_for(size: int) -> Callable[[], None]:
    """Let no file grow beyond `size` bytes; the returned function takes the limit away."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_file_that_cannot_grow_leaves_the_last_checkpoint_whole(part, tiny_config, share) -> None:
    training = Training(tiny_config("part"), World.join(CPU), lambda _: None)
    largest = max(path.stat().st_size for path in (part.checkpoints / "last").iterdir())
    training._step(training._next(training.reader.batches(training.reader.start)))
    free = room_for(int(largest * share))
    try:
        with pytest.raises(Stopped) as stopped:
            save(training, best=True)
    finally:
        free()
    line = str(stopped.value)
    assert line.startswith("rank 0: the checkpoint of step 7 cannot be written to ")
    assert "(File too large)" in line
    assert line.endswith("go on with --resume auto")
    assert_intact(part)
    assert Training(tiny_config("part"), World.join(CPU), lambda _: None).progress.step == 6


def save(training: Training, *, best: bool = False) -> None:
    """Write a checkpoint and wait for it, as a run does at its end."""
    training.checkpoints.save(training.strategy, training.progress, best=best)
    training.checkpoints.wait()


def assert_intact(run: RunDirectory) -> None:
    """Links and folders are as they were, hashes hold, nothing half written is left."""
    assert names(run) == {"last": "step-00000006", "previous": "step-00000005", "best": "step-00000005"}
    assert steps(run) == {"step-00000005", "step-00000006"}
    assert all(check_files(run.checkpoints / folder) for folder in steps(run))


@pytest.mark.parametrize("function", ["write_weights", "write_moments", "hash_files", "write_hashes", "_flush"])
def test_a_disk_that_is_full_at_any_moment_of_a_checkpoint(part, tiny_config, monkeypatch, function) -> None:
    training = Training(tiny_config("part"), World.join(CPU), lambda _: None)
    training.progress.step += 1

    def full(*arguments, **more):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(checkpoints, function, full)
    with pytest.raises(Stopped, match=r"step 7 cannot be written to .*checkpoints \(No space left on device\)"):
        save(training)
    assert_intact(part)


def test_a_full_disk_elsewhere_is_one_line_too(tiny_config) -> None:
    run = set_up(tiny_config(), resume=False)
    said = r"^nothing can be written to /r/metrics\.jsonl \(No space left on device\)"
    with pytest.raises(UserError, match=said), told_in_one_line(run, rank=0):
        raise OSError(28, "No space left on device", "/r/metrics.jsonl")
    with pytest.raises(FileNotFoundError), told_in_one_line(run, rank=0):
        raise FileNotFoundError(2, "No such file", "/r/x")
    with told_in_one_line(run, rank=0):
        raise Stopped("rank 1: the loss is nan")
    assert json.loads(run.stopped.read_text()) == {"reason": "rank 1: the loss is nan"}
    run.stopped.unlink()
    run.stopped.mkdir()  # in its place: nothing can be left there
    with pytest.raises(UserError, match=r"^rank 1: the loss is nan$"), told_in_one_line(run, rank=0):
        raise Stopped("rank 1: the loss is nan")
    assert disk_is_full(OSError(28, "x"))


# Two ranks -----------------------------------------------------------------------------------------------------------


def two_ranks(rank: int, path: Path, cut: Path, out: Path) -> None:
    """One rank of all that needs two; writes what became of each case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    world = World.join(CPU)
    config = load(path)
    outcomes: dict[str, object] = {}

    def outcome(work: Callable[[], object]) -> object:
        try:
            return work()
        except Stopped as stopped:
            return str(stopped)

    def begin(config: Config) -> Training:
        return Training(config, world, lambda _: None)

    data = config.data.model_copy(update={"train": cut if rank == 1 else config.data.folder("train")})
    mine = config.model_copy(update={"data": data})
    outcomes["one rank reads other data"] = outcome(lambda: begin(mine).progress.step)

    training = begin(config.model_copy(update={"train": config.train.model_copy(update={"stop_after_epochs": 1.25})}))
    complete(training)
    outcomes["saved"] = training.progress.step
    run = RunDirectory(config.run_dir)
    path = run.checkpoints / "last" / OPTIMIZER
    if rank == 0:
        path.write_bytes(path.read_bytes()[:-1])
    world.barrier()
    training = begin(config)
    outcomes["fell back to"] = training.progress.step
    world.barrier()

    if rank == 1:
        checkpoints.hash_files = full
    outcomes["one rank cannot read back"] = outcome(lambda: save(training))
    world.barrier()
    outcomes["left"] = sorted(path.name for path in run.checkpoints.iterdir())
    (out / f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


def full(*arguments: object) -> None:
    raise OSError(28, "No space left on device")


def test_ranks_choose_the_same_checkpoint_and_stop_together(tiny_config, tiny, tmp_path) -> None:
    train_section = {"checkpoint_every_minutes": 1e-9, "epochs": 3, "global_batch": 22}
    run = set_up(tiny_config("ranks", train=train_section), resume=False)
    cut = tmp_path / "cut"
    shutil.copytree(tiny / "train", cut)
    mp.spawn(two_ranks, args=(run.config, cut, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["one rank reads other data"].startswith("the ranks do not train alike: data.train is ")
    assert first["saved"] == 6
    assert first["fell back to"] == 5
    assert first["one rank cannot read back"].startswith("rank 1: the checkpoint of step 5 cannot be written to ")
    assert not any(name.startswith(".") for name in first["left"])
    assert "step-00000005" in first["left"]
    (line,) = notes(run)
    assert OPTIMIZER in line


def test_training_goes_on_while_a_checkpoint_is_written(part, tiny_config, monkeypatch) -> None:
    """The files come from the step they are named after, whatever training does meanwhile; a crash loses them alone."""
    written, may_write = checkpoints.write_moments, threading.Event()

    def slowly(folder: Path, pieces: list, rank: int) -> None:
        may_write.wait(60)
        written(folder, pieces, rank)

    monkeypatch.setattr(checkpoints, "write_moments", slowly)
    training = Training(tiny_config("part", train={"stop_after_epochs": 1.25}), World.join(CPU), lambda _: None)
    training.checkpoints.save(training.strategy, training.progress, best=False)
    before = {name: value.clone() for name, value in training.encoder.state_dict().items()}
    batches = training.reader.batches(training.reader.start)
    for _ in range(2):
        training._step(training._next(batches))
        assert not training.checkpoints.written
    assert names(part)["last"] == "step-00000006"
    assert Training(tiny_config("part"), World.join(CPU), lambda _: None).progress.step == 6  # as after a crash here
    may_write.set()
    while not training.checkpoints.written:
        time.sleep(0.01)
    training._next(batches)
    saved = load_file(part.checkpoints / "last/model.safetensors")
    assert all(torch.equal(saved[name], before[name]) for name in saved)
    assert not all(torch.equal(saved[name], value) for name, value in training.encoder.state_dict().items())
    assert_intact(part)
