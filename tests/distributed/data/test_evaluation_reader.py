import pytest

from allpairs.errors import UserError
from tests.distributed.data.readers import evaluation_batches


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_every_image_once_in_order_with_all_captions(numbered, world):
    dataset = numbered([7, 6])
    keys, captions, ids = [], [], []
    for rank in range(world):
        for batch in evaluation_batches(dataset, batch=4, rank=rank, world=world, image_size=8):
            assert 1 <= len(batch.keys) <= 4
            keys += batch.keys
            captions += batch.captions
            ids += batch.caption_ids.tolist()
            assert batch.images[:, 0, 0, 0].tolist() == batch.image_ids.tolist()
    assert keys == [f"k{i:04d}" for i in range(13)]
    assert captions == [f"number {i}" for i in range(13)]
    assert ids == list(range(13))


def test_too_many_bad_samples_stop_it_at_the_end(shards_dataset, png):
    members = [("a.png", png()), ("a.txt", b"x"), ("b.png", b"?"), ("b.txt", b"x")]
    dataset = shards_dataset([members])
    (batch,) = evaluation_batches(dataset, batch=4, image_size=8, max_bad_fraction=0.5)
    assert batch.keys == ["a"]
    with pytest.raises(UserError, match="1 of 2 samples cannot be used"):
        list(evaluation_batches(dataset, batch=4, image_size=8))
