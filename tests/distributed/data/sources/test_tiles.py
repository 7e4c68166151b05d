import importlib

import numpy as np
import pytest

from allpairs.command import run
from distributed.data import open_dataset
from distributed.data.images import decode_image, decode_regions


def build(*arguments):
    app = importlib.import_module("distributed.data.__main__").app
    with pytest.raises(SystemExit) as exit_:
        run(app, ["build", "tiles", *map(str, arguments)])
    return exit_.value.code


def test_every_picture_of_a_data_set_becomes_its_tiles(tiny, tmp_path):
    assert build(tiny, "--grid", 3, "--side", 4, "--out", tmp_path / "tiles") == 0
    for split in ("train", "val", "test"):
        pictures, regions = open_dataset(tiny / split), open_dataset(tmp_path / "tiles" / split)
        assert regions.kind == "regions"
        assert len(regions) == len(pictures)
        before, after = pictures.read(5), regions.read(5)
        assert (after.key, after.captions) == (before.key, before.captions)
        picture, tiles = decode_image(before.data, 12, 10_000), decode_regions(after.data)
        assert tiles.shape == (9, 48)
        for row in range(3):
            for column in range(3):
                tile = picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                np.testing.assert_allclose(tiles[3 * row + column], tile.flatten() / 127.5 - 1, atol=1e-6)


def test_mistakes_are_one_line(tiny, tmp_path, capsys):
    def mistake(*arguments):
        assert build(*arguments, "--out", tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "--grid 0: accepted is 1 to 64" in mistake(tiny, "--grid", 0)
    assert build(tiny, "--out", tmp_path / "tiles") == 0
    assert "holds regions already; accepted: a data set of pictures" in mistake(tmp_path / "tiles")
    assert "no such folder" in mistake(tmp_path / "nothing")
