"""What tests share: real pairs (or a stranger's stand-in), tiny ones, and a record of whether the real were used."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from allpairs.command import run
from distributed.data.writer import Sample, write_split

ROOT = Path(__file__).parents[1]


def _shared() -> Path | None:
    """The folder that ALLPAIRS_SHARED names; naming one that lacks the data is an error, never a silent stand-in."""
    named = os.environ.get("ALLPAIRS_SHARED")
    if not named:
        return None
    assert (Path(named) / "data/emoji/dataset.json").is_file(), f"ALLPAIRS_SHARED={named} holds no data/emoji"
    return Path(named).resolve()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train, val and test: the real emoji where ALLPAIRS_SHARED names them, else the built-in scenes."""
    out = tmp_path_factory.mktemp("data") / "pairs"
    shared = _shared()
    if shared is None:
        source = ["scenes"]
    else:
        source = ["karpathy", str(shared / "data/emoji/dataset.json"), "--images", str(shared / "data/emoji/images")]
    command = [sys.executable, "-m", "distributed.data", "build", *source, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return out


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]) -> Callable[..., Callable[..., tuple[Any, str, str]]]:
    """Make of a command's app a function that runs it in this process, up to its exit: code, output, errors."""

    def make(app: Any) -> Callable[..., tuple[Any, str, str]]:
        def call(*arguments: Any) -> tuple[Any, str, str]:
            with pytest.raises(SystemExit) as caught:
                run(app, [str(argument) for argument in arguments])
            output = capsys.readouterr()
            return caught.value.code, output.out, output.err

        return call

    return make


@pytest.fixture(autouse=True)
def own_wandb_service() -> Iterator[None]:
    """Leave no test the address of W&B's process that an earlier one started here: its commands start their own."""
    yield
    os.environ.pop("WANDB_SERVICE", None)


COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "white"]
SIZES = {"tiny": 4, "small": 8, "big": 12, "huge": 16}


def draw(colour: str, size: str, corner: int) -> bytes:
    """A square of a colour and size in one of four corners."""
    image = Image.new("RGB", (24, 24), "grey")
    image.paste(colour, (corner % 2 * 8, corner // 2 * 8, corner % 2 * 8 + SIZES[size], corner // 2 * 8 + SIZES[size]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def samples(held_out: bool) -> list[Sample]:
    """128 squares, every fourth of them held out."""
    places = ("upper left", "upper right", "lower left", "lower right")
    kinds = [(colour, size, corner) for colour in COLOURS for size in SIZES for corner in range(4)]
    return [
        Sample(
            f"{colour}-{size}-{corner}",
            "png",
            draw(colour, size, corner),
            [f"a {size} {colour} square {places[corner]}", f"{colour}, {size}, {places[corner]}"],
        )
        for number, (colour, size, corner) in enumerate(kinds)
        if (number % 5 % 4 == 3) == held_out
    ]


@pytest.fixture(scope="session")
def tiny_samples():
    """The function that makes the tiny data's samples."""
    return samples


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """103 training images, 25 to validate and test on, two captions each."""
    root = tmp_path_factory.mktemp("tiny")
    for split in ("train", "val", "test"):
        write_split(root / split, samples(split != "train"), name="tiny", split=split, source={}, shard_samples=40)
    return root


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the tests that ran on real data, and those that a browser passed.

    Here, because the process that hears of all tests loads no other conftest.
    """
    if report.when == "call" and report.passed:
        if "realdata" in report.keywords and _shared() is not None:
            _PASSED["real-data"].append(report.nodeid)
        if "browser" in report.keywords:
            _PASSED["browser"].append(report.nodeid)


_PASSED: dict[str, list[str]] = {"real-data": [], "browser": []}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the names where the continuous integration can check that there are some."""
    cache = getattr(session.config, "cache", None)  # absent under -p no:cacheprovider
    if cache is None or hasattr(session.config, "workerinput"):  # once, for all
        return
    for kind, names in _PASSED.items():
        if names:
            cache.set(f"allpairs/{kind}", sorted(names))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what is left out and why."""
    from tests.retrieval_eval.conftest import NAMES, find

    if find() is None:
        terminalreporter.write_line(
            f"tests that click through the report are not run: they need one of {', '.join(NAMES)}"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let files of what is frozen be written anew, for a change that is meant."""
    parser.addoption("--renew", action="store_true", help="write tests/**/golden and surface files anew")
