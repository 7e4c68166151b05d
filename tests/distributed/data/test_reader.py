import io
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from allpairs.errors import UserError
from distributed.data import Position, open_dataset
from distributed.data.writer import write_manifest
from tests.distributed.data.readers import train_reader

SHARDS = [31, 40, 1, 30]  # 102 samples; batches of 32 leave a tail of 6


def read_epoch(dataset, position, *, world, global_batch=32, **options):
    """Per step, the batches of all ranks."""
    readers = [
        train_reader(
            dataset,
            global_batch=global_batch,
            seed=3,
            rank=rank,
            world=world,
            image_size=8,
            shuffle_window=50,
            **options,
        )
        for rank in range(world)
    ]
    return list(zip(*(list(reader.batches(position)) for reader in readers), strict=True))


def content(steps):
    """Per step, what the ranks read together: image, ids and captions, in order."""
    return [
        (
            torch.cat([batch.images for batch in step]).tolist(),
            [i for batch in step for i in batch.image_ids.tolist()],
            [caption for batch in step for caption in batch.captions],
            {batch.position for batch in step},
        )
        for step in steps
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_an_epoch_is_every_sample_once_on_equal_steps(numbered, world):
    dataset = numbered(SHARDS)
    for epoch in range(2):
        steps = read_epoch(dataset, Position(3, epoch), world=world)
        assert all(max(sizes) - min(sizes) <= 1 for step in steps if (sizes := [len(b.keys) for b in step]))
        ids = [i for step in steps for batch in step for i in batch.image_ids.tolist()]
        assert Counter(ids) == Counter(range(102))
        for batch in (batch for step in steps for batch in step):
            assert batch.captions == [f"number {i}" for i in batch.image_ids.tolist()]
            assert batch.keys == [f"k{i:04d}" for i in batch.image_ids.tolist()]
            assert batch.images[:, 0, 0, 0].tolist() == batch.image_ids.tolist()  # the colour is the number


@pytest.mark.parametrize("world", [2, 3])
def test_global_batches_are_the_same_for_every_world_size(numbered, world):
    dataset = numbered(SHARDS)
    assert content(read_epoch(dataset, Position(3), world=world)) == content(read_epoch(dataset, Position(3), world=1))


def test_a_resumed_epoch_equals_the_uninterrupted_one_at_another_world_size(numbered):
    dataset = numbered(SHARDS)
    options = {"augment": "crop_flip"}
    whole = content(read_epoch(dataset, Position(3, 1), world=2, **options))
    position = read_epoch(dataset, Position(3, 1), world=2, **options)[1][0].position
    assert position == Position(3, 1, 64)
    for world in (1, 2, 3):
        assert content(read_epoch(dataset, position, world=world, **options)) == whole[2:]


def test_positions_lead_into_the_next_epoch(numbered):
    steps = read_epoch(numbered(SHARDS), Position(3), world=2)
    assert [step[0].position for step in steps] == [
        Position(3, 0, 32),
        Position(3, 0, 64),
        Position(3, 0, 96),
        Position(3, 1, 0),
    ]
    assert [step[0].global_rows for step in steps] == [32, 32, 32, 6]


def test_epochs_differ_in_order_and_a_reader_counts_its_steps(numbered):
    dataset = numbered(SHARDS)
    reader = train_reader(dataset, global_batch=32, seed=0, image_size=8)
    assert reader.steps_per_epoch == 4
    assert reader.steps_left(Position(0, 5, 64)) == 2
    first, second = ([b.keys for b in reader.batches(Position(0, epoch))] for epoch in (0, 1))
    assert first != second
    assert reader.seen == 204
    assert not reader.bad


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("cache_mb", [0, 1])
def test_threads_prefetch_and_cache_change_nothing(numbered, threads, prefetch, cache_mb):
    dataset = numbered([40])
    plain = train_reader(dataset, global_batch=16, seed=0, image_size=8, threads=1, ahead=0, cache_mb=0)
    reader = train_reader(
        dataset, global_batch=16, seed=0, image_size=8, threads=threads, ahead=prefetch, cache_mb=cache_mb
    )
    for epoch in range(2):
        for ours, theirs in zip(reader.batches(Position(0, epoch)), plain.batches(Position(0, epoch)), strict=True):
            assert ours.keys == theirs.keys
            assert torch.equal(ours.images, theirs.images)


def test_the_cache_saves_reading_again(numbered, tmp_path):
    dataset = numbered([20])
    reader = train_reader(dataset, global_batch=10, seed=0, image_size=8)
    first = {k: i for b in reader.batches(Position(0, 0)) for k, i in zip(b.keys, b.images, strict=True)}
    shard = next((tmp_path / "shards").glob("*.tar"))
    shard.write_bytes(bytes(shard.stat().st_size))  # gone from the disk
    for batch in reader.batches(Position(0, 1)):
        assert all(torch.equal(image, first[key]) for key, image in zip(batch.keys, batch.images, strict=True))


@pytest.fixture
def lines_dataset(tmp_path, tar_shard, png):
    """A data set of one shard whose sample n has the given number of captions "n caption j", one per line."""

    def make(captions_per_sample):
        members = []
        for number, count in enumerate(captions_per_sample):
            text = "\n".join(f"{number} caption {j}" for j in range(count))
            members += [(f"{number}.png", png()), (f"{number}.txt", text.encode())]
        file = tar_shard(tmp_path / "lines" / "0.tar", members)
        about = {"name": "lines", "split": "train", "source": {}, "kind": "image", "text": "lines", "relative": True}
        write_manifest(file.parent, [file], **about)
        return open_dataset(file.parent)

    return make


def test_captions_are_distinct_joined_by_id_and_change_over_epochs(lines_dataset):
    dataset = lines_dataset([5] * 12)
    reader = train_reader(dataset, global_batch=6, seed=0, image_size=8, captions_per_image=3)
    drawn = []
    for epoch in range(2):
        for batch in reader.batches(Position(0, epoch)):
            assert len(batch.captions) == 3 * len(batch.keys)
            assert batch.caption_ids.tolist() == [i for i in batch.image_ids.tolist() for _ in range(3)]
            assert [int(c.split()[0]) for c in batch.captions] == batch.caption_ids.tolist()
            assert len(set(batch.captions)) == len(batch.captions)
            drawn.append(sorted(batch.captions))
    assert sorted(drawn[0] + drawn[1]) != sorted(drawn[2] + drawn[3])


def test_an_image_with_fewer_captions_repeats_them(lines_dataset):
    reader = train_reader(lines_dataset([1, 2]), global_batch=2, seed=0, image_size=8, captions_per_image=3)
    (batch,) = reader.batches(Position(0))
    counts = Counter(batch.captions)
    assert counts["0 caption 0"] == 3
    assert sorted(counts[f"1 caption {j}"] for j in range(2)) == [1, 2]


def test_tokens_are_made_in_the_background(numbered):
    threads = []

    def tokenize(captions):
        threads.append(threading.current_thread())
        return [len(caption) for caption in captions]

    reader = train_reader(numbered([8]), global_batch=4, seed=0, image_size=8, tokenize=tokenize)
    for batch in reader.batches(Position(0)):
        assert batch.tokens == [len(caption) for caption in batch.captions]
    assert threading.main_thread() not in threads


def broken_shard(png):
    good = [(f"g{i}.{suffix}", data) for i in range(20) for suffix, data in (("png", png()), ("txt", b"fine"))]
    bad = [
        ("b0.png", png()),
        ("b1.txt", b"no image"),
        ("b2.png", b"broken"),
        ("b2.txt", b"x"),
        ("b3.png", png(size=(90, 90))),
        ("b3.txt", b"x"),
        ("b4.png", png()),
        ("b4.txt", b""),
    ]
    return [[*good, *bad]]


def test_bad_samples_are_dropped_and_counted_by_cause(shards_dataset, png):
    dataset = shards_dataset(broken_shard(png))
    reader = train_reader(
        dataset, global_batch=25, seed=0, image_size=8, max_image_pixels=80 * 80, max_bad_fraction=0.1
    )
    for epoch in range(2):  # the second time from the cache
        (batch,) = reader.batches(Position(0, epoch))
        assert len(batch.keys) == len(batch.images) == len(batch.captions) == 20
        assert (batch.seen, sum(batch.bad.values())) == (25, 5)
    causes = ("missing text", "missing image", "undecodable image", "oversized image", "empty captions")
    assert reader.bad == dict.fromkeys(causes, 2)
    assert reader.seen == 50
    with pytest.raises(UserError, match=r"10 of 50 samples cannot be used .*2 undecodable image.* fraction of 0\.1"):
        reader.check_bad_fraction()


def test_a_tolerated_fraction_passes(shards_dataset, png):
    reader = train_reader(
        shards_dataset(broken_shard(png)), global_batch=25, seed=0, image_size=8, max_bad_fraction=0.2
    )
    list(reader.batches(Position(0)))
    reader.check_bad_fraction()


def test_a_batch_without_negatives_names_its_samples(shards_dataset, png):
    dataset = shards_dataset([[("a.png", png()), ("a.txt", b"x"), ("b.png", b"?"), ("b.txt", b"x")]])
    with pytest.raises(UserError, match=r"1 undecodable image.*00000\.tar: [ab]"):
        list(train_reader(dataset, global_batch=2, seed=0, image_size=8).batches(Position(0)))


def test_positions_of_other_data_are_refused(numbered):
    reader = train_reader(numbered([20]), global_batch=10, seed=0, image_size=8)
    with pytest.raises(UserError, match="seed 5"):
        reader.steps_left(Position(5))
    with pytest.raises(UserError, match="sample 20 of an epoch"):
        list(reader.batches(Position(0, 0, 20)))


def test_more_ranks_than_rows_are_refused(numbered):
    with pytest.raises(UserError, match="use fewer workers"):
        train_reader(numbered([6]), global_batch=6, seed=0, world=4)


def test_augmentation_is_drawn_by_epoch_and_leaves_the_cache_alone(numbered, shards_dataset):
    ramp = Image.fromarray(np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8))
    stream = io.BytesIO()
    ramp.save(stream, "PNG")
    members = [(f"{i}.{s}", d) for i in range(4) for s, d in (("png", stream.getvalue()), ("txt", b"x"))]
    dataset = shards_dataset([members])

    def pictures(augment, epoch):
        reader = train_reader(dataset, global_batch=4, seed=0, image_size=16, augment=augment)
        (batch,) = reader.batches(Position(0, epoch))
        return dict(zip(batch.image_ids.tolist(), batch.images, strict=True))

    plain, crops, again, later = pictures("none", 0), pictures("crop", 0), pictures("crop", 0), pictures("crop", 1)
    assert all(torch.equal(crops[i], again[i]) for i in range(4))
    assert all(crops[i].shape == (3, 16, 16) and not torch.equal(crops[i], later[i]) for i in range(4))
    # A crop shows at least 7/8 of the picture, so it cannot move a linear ramp far.
    assert all((crops[i].float() - plain[i].float()).abs().max() < 255 / 8 for i in range(4))
    flipped = [pictures("crop_flip", epoch) for epoch in range(6)]
    mirrored = [
        torch.equal(flipped[epoch][i], pictures("crop", epoch)[i].flip(-1)) for epoch in range(6) for i in range(4)
    ]
    assert 0 < sum(mirrored) < 24


def data_threads():
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(("data-prefetch", "ThreadPoolExecutor"))
    ]


def test_leaving_the_loop_stops_the_threads(numbered):
    reader = train_reader(numbered([60]), global_batch=4, seed=0, image_size=8, threads=2, ahead=2)
    for _ in reader.batches(Position(0)):
        assert data_threads()
        break
    assert not data_threads()
    batches = reader.batches(Position(0))
    next(batches)
    batches.close()
    assert not data_threads()


def test_an_error_in_the_background_reaches_the_consumer(numbered):
    def tokenize(captions):
        raise RuntimeError("tokeniser failed")

    reader = train_reader(numbered([60]), global_batch=4, seed=0, image_size=8, tokenize=tokenize)
    with pytest.raises(RuntimeError, match="tokeniser failed"):
        list(reader.batches(Position(0)))
    assert not data_threads()


@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_over_captions_is_every_caption_once_with_its_image(tmp_path, tar_shard, png, world):
    # Image n has n % 3 + 1 captions; the last has no text at all.
    def member(n):
        words = "\n".join(f"{n} said {c}" for c in range(n % 3 + 1)).encode()
        return [(f"k{n:03}.png", png((n, 0, 7))), (f"k{n:03}.txt", words)]

    shards = [[part for n in range(first, last) for part in member(n)] for first, last in ((0, 17), (17, 40))]
    shards[1].append(("k040.png", png()))
    files = [tar_shard(tmp_path / f"{n}.tar", members) for n, members in enumerate(shards)]
    write_manifest(
        tmp_path, files, name="made", split="train", source={"kind": "made"}, kind="image", text="lines", relative=True
    )
    dataset = open_dataset(tmp_path)
    pairs = Counter((n, f"{n} said {c}") for n in range(40) for c in range(n % 3 + 1))
    options = {"epoch_unit": "captions", "max_bad_fraction": 0.5}
    steps = read_epoch(dataset, Position(3, 0), world=world, global_batch=16, **options)
    read = [(i, c) for step in steps for b in step for i, c in zip(b.caption_ids.tolist(), b.captions, strict=True)]
    assert Counter(read) == pairs
    assert read != sorted(read)
    assert sum((Counter(batch.bad) for step in steps for batch in step), Counter()) == {"missing text": 1}
    assert all(batch.images[:, 0, 0, 0].tolist() == batch.image_ids.tolist() for step in steps for batch in step)
    assert {len(pairs) + 1} == {
        train_reader(dataset, global_batch=16, seed=3, rank=0, world=world, **options).samples_per_epoch
    }
    (middle,) = {batch.position for batch in steps[1]}
    rest = read_epoch(dataset, middle, world=world + 1, global_batch=16, **options)
    assert [part[1:3] for part in content(rest)] == [part[1:3] for part in content(steps)[2:]]
