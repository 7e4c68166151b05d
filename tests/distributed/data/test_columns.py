"""Margins that come with the pairs: from every source into the index, checked, and read by the training reader."""

import json
from pathlib import Path

import pytest

from allpairs.errors import UserError
from distributed.data import Position, open_dataset
from distributed.data.margins import ColumnMargins
from distributed.data.writer import Sample, write_split
from tests.distributed.data.readers import train_reader


def of(dataset, column="soft"):
    return [dataset.margins(row, column) for row in range(len(dataset))]


@pytest.fixture
def shard(tmp_path, tar_shard, png):
    """Write an img2dataset shard, one sample per key of `facts`; None: without .json."""

    def write(facts: dict[str, object]) -> Path:
        members = []
        for key, value in facts.items():
            members += [(f"{key}.png", png()), (f"{key}.txt", b"a caption")]
            if value is not None:
                members.append((f"{key}.json", value if isinstance(value, bytes) else json.dumps(value).encode()))
        return tar_shard(tmp_path / "shards/00000.tar", members)

    return write


def test_of_img2dataset_shards_where_they_lie(command, tmp_path, shard):
    facts = {"a": {"soft": 0.25, "hard": 1, "width": 8}, "b": {"soft": [1e-3], "hard": 0}}
    shard(facts)
    flags = ["--margin-column", "soft", "--margin-column", "hard"]
    code, _, error = command(
        "build", "img2dataset", tmp_path / "shards", "--out", tmp_path / "out", "--split", "train", *flags
    )
    assert (code, error) == (0, "")
    dataset = open_dataset(tmp_path / "out/train")
    assert dataset.margin_columns == ["soft", "hard"]
    assert of(dataset) == [[0.25], [1e-3]]
    assert of(dataset, "hard") == [[1.0], [0.0]]
    assert command("validate", tmp_path / "out/train")[0] == 0


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, "soft is missing"),
        ({"other": 1}, "soft is missing"),
        ({"soft": None}, "soft is missing"),
        ({"soft": "0.2"}, "soft is '0.2', not a finite number of at least 0"),
        ({"soft": True}, "soft is True, not a finite"),
        ({"soft": -0.1}, "soft is -0.1, not a finite"),
        (b'{"soft": NaN}', "soft is nan, not a finite"),
        (b'{"soft": 1e999}', "soft is inf, not a finite"),
        (b'{"soft": 1' + b"0" * 400 + b"}", "soft is 1000"),
        ({"soft": [0.1, 0.2]}, "soft has 2 numbers for 1 captions"),
        (b"[" * 100_000, "its .json is no JSON object"),
        (b"\xff", "its .json is no JSON object"),
    ],
)
def test_what_is_no_margin_is_refused_naming_the_sample(facts, said, command, tmp_path, shard):
    file = shard({"good": {"soft": 0}, "kitten": facts})
    target = ["--out", tmp_path / "out", "--split", "train", "--margin-column", "soft"]
    code, _, error = command("build", "img2dataset", tmp_path / "shards", *target)
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    assert f"{file}: kitten: {said}" in error
    assert not (tmp_path / "out").exists()


def test_validate_finds_what_was_altered_since(command, tmp_path, shard):
    shard({"a": {"soft": 0.5}, "b": {"soft": 0.5}})
    target = ["--out", tmp_path / "out", "--split", "train", "--margin-column", "soft"]
    command("build", "img2dataset", tmp_path / "shards", *target)
    shard({"a": {"soft": 0.5}, "b": {"soft": "x"}})
    code, output, _ = command("validate", tmp_path / "out/train")
    assert code == 1
    assert "unusable margins: first in 00000.tar: b (soft is 'x', not a finite number of at least 0)" in " ".join(
        output.split()
    )


def test_of_the_sentences_or_images_of_a_karpathy_json(command, tmp_path, karpathy_json):
    file, images = karpathy_json(tmp_path)
    document = json.loads(file.read_text())
    for number, entry in enumerate(document["images"]):
        entry["hard"] = number
        for place, sentence in enumerate(entry["sentences"]):
            sentence["soft"] = number + place / 10
    document["images"][0]["sentences"][0]["raw"] = document["images"][0]["sentences"][0]["tokens"] = None
    document["images"][0]["sentences"][0].pop("raw"), document["images"][0]["sentences"][0].pop("tokens")
    file.write_text(json.dumps(document))
    flags = ["--images", images, "--out", tmp_path / "out", "--margin-column", "soft", "--margin-column", "hard"]
    assert command("build", "karpathy", file, *flags)[0] == 0
    dataset = open_dataset(tmp_path / "out/train")
    # The blank first sentence went, and its margin with it.
    assert of(dataset) == [[0.1], [1.0, 1.1], [4.0, 4.1]]
    assert of(dataset, "hard") == [[0.0], [1.0, 1.0], [4.0, 4.0]]
    assert command("validate", tmp_path / "out")[0] == 0

    document["images"][1]["sentences"][1]["soft"] = -1
    file.write_text(json.dumps(document))
    code, _, error = command("build", "karpathy", file, *flags, "--overwrite")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "train2014/img.1.png (soft is -1, not a finite number of at least 0): unusable margins" in error
    code, output, _ = command("build", "karpathy", file, *flags, "--overwrite", "--skip-incomplete")
    assert code == 0
    assert "left out: 1, unusable margins (and 2 captions)" in " ".join(output.split())


def test_of_a_json_beside_each_image_of_a_folder(command, tmp_path, png):
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            place = tmp_path / "pairs" / split / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png((number, 0, 0)))
            place.with_suffix(".txt").write_text("one\n\nanother\n")
            place.with_suffix(".json").write_text(json.dumps({"soft": [number, 0.5]}))
    build = ["build", "folder", tmp_path / "pairs", "--out", tmp_path / "out", "--margin-column", "soft"]
    assert command(*build)[0] == 0
    assert of(open_dataset(tmp_path / "out/train")) == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    (tmp_path / "pairs/train/1.json").unlink()
    code, _, error = command(*build, "--overwrite")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "pairs/train/1.png (soft is missing): unusable margins" in error


def columned(folder, png, count=21):
    """Captions that name their margin; every fifth picture cannot be decoded."""
    samples = [
        Sample(
            f"k{number}",
            "png",
            b"broken" if number % 5 == 4 else png((number, 0, 0)),
            [f"{number + place / 4}" for place in range(3)],
            {"soft": [number + place / 4 for place in range(3)]},
        )
        for number in range(count)
    ]
    source = {"margin_columns": ["soft"]}
    write_split(folder, samples, name="made", split="train", source=source, shard_samples=8)
    return open_dataset(folder)


@pytest.mark.parametrize("unit", ["images", "captions"])
@pytest.mark.parametrize("world", [1, 3])
def test_the_reader_gives_each_pair_its_own(unit, world, tmp_path, png):
    dataset = columned(tmp_path / "train", png)
    margins = ColumnMargins(dataset, "soft")
    seen = []
    for rank in range(world):
        reader = train_reader(dataset, global_batch=16, seed=2, rank=rank, world=world, image_size=8, threads=2,
                              epoch_unit=unit, max_bad_fraction=1, margins=margins)  # fmt: skip
        for epoch in range(2):
            for batch in reader.batches(Position(2, epoch)):
                assert batch.margins.tolist() == [float(caption) for caption in batch.captions]
                seen += batch.margins.tolist()
    assert len(seen) == 2 * (17 if unit == "images" else 51)


def test_without_a_source_there_are_none(numbered):
    batch = next(train_reader(numbered([8]), global_batch=8, seed=0, image_size=8).batches(Position(0)))
    assert batch.margins is None


def test_a_column_that_is_not_there_names_those_that_are(tmp_path, png, numbered):
    with pytest.raises(UserError, match=r"margins.column=sof: .* was not built with it: it has soft; did you mean"):
        ColumnMargins(columned(tmp_path / "train", png), "sof")
    with pytest.raises(UserError, match=r"it has none .*--margin-column soft"):
        ColumnMargins(numbered([4]), "soft")
