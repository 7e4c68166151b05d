import numpy as np
import pytest

from distributed.data.pictures import Pictures, fingerprint, has_word, repeated, shared


@pytest.mark.parametrize(
    "caption", ["a", "7", "½", "Ⅷ", "犬", "สุนัข", "كلب", "כלב", "कुत्ता", "🍕", "👍🏽", "🇻🇳", "☂", "...x", "é"]
)
def test_letters_numbers_and_emoji_of_any_script_are_words(caption):
    assert has_word(caption)


@pytest.mark.parametrize(
    "caption", ["", " ", "...", "?!", "—", "、。", "؟", "_", "$", "+", "\u0301", "\ufffd\ufffd", "\ufe0f", "“”"]
)
def test_punctuation_and_what_could_not_be_decoded_are_none(caption):
    assert not has_word(caption)


def pictures(split, *prints):
    return Pictures(split, np.array(prints, dtype=np.uint64), lambda row: f"{split}{row}")


def test_repeated_pictures_are_counted_and_paired_with_the_first():
    assert repeated(pictures("a", 5, 6, 7)) is None
    assert repeated(pictures("a", 0, 0, 7)) is None  # no picture is no repeated one
    assert repeated(pictures("a")) is None
    assert "3 of 6 pictures of a repeat an earlier one (a0 = a2, a1 = a4, a0 = a5)" in repeated(
        pictures("a", 5, 6, 5, 7, 6, 5)
    )
    assert "(a0 = a1, a0 = a2, a0 = a3, a0 = a4, a0 = a5, …)" in repeated(pictures("a", *[9] * 8))


def test_shared_pictures_are_named_for_every_two_splits():
    train, val, test = pictures("train", 1, 2, 3, 0), pictures("val", 4, 0), pictures("test", 3, 4, 3)
    first, second = shared([train, val, test])
    assert "2 of 3 pictures of test are in train too (train2 = test0, train2 = test2)" in first
    assert "1 of 3 pictures of test are in val too (val0 = test1)" in second


def test_other_bytes_are_other_pictures():
    assert fingerprint(b"a") == fingerprint(b"a") != fingerprint(b"b")
    assert 0 < fingerprint(b"a") < 2**64
