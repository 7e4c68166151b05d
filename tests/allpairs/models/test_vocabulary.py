import random

import pytest

from allpairs.errors import UserError
from allpairs.models import Vocabulary

CAPTIONS = ["A red cat, sitting.", "a red dog", "A CAT and a dog: running!", "the cat"]


def test_words_are_ordered_by_count_and_encoded_between_start_and_end():
    vocabulary = Vocabulary.build(CAPTIONS)
    # a 4 times, cat 3, dog 2, red 2, then the words seen once in alphabetical order; 0 to 3 are special.
    tokens, lengths = vocabulary.encode(["a cat", "red dog and the running"])
    a, cat, dog, red, and_, running, the = 4, 5, 6, 7, 8, 9, 11
    assert tokens.tolist() == [[1, a, cat, 2, 0, 0, 0], [1, red, dog, and_, the, running, 2]]
    assert lengths.tolist() == [4, 7]
    assert len(vocabulary) == 12


def test_case_punctuation_and_unicode_forms_do_not_matter():
    vocabulary = Vocabulary.build(["café", "the cat's fish"])
    composed, decomposed = "caf\u00e9", "CAFE\u0301"
    tokens, _ = vocabulary.encode([f"{composed}!", decomposed, "(the) CAT s FISH", "the cat's, fish"])
    assert tokens[0].tolist() == tokens[1].tolist()
    assert tokens[2].tolist() == tokens[3].tolist()
    assert 3 not in tokens.tolist()[0]


def test_an_unknown_word_is_unknown_and_special_tokens_cannot_be_spelt():
    tokens, _ = Vocabulary.build(CAPTIONS).encode(["a zebra", "<pad> <end>"])
    assert tokens.tolist() == [[1, 4, 3, 2], [1, 3, 3, 2]]


def test_an_empty_caption_has_start_and_end():
    tokens, lengths = Vocabulary.build(CAPTIONS).encode(["", "...", "cat"])
    assert tokens.tolist() == [[1, 2, 0], [1, 2, 0], [1, 5, 2]]
    assert lengths.tolist() == [2, 2, 3]


def test_long_captions_are_cut_but_keep_their_end():
    tokens, lengths = Vocabulary.build(CAPTIONS).encode(["a cat a cat a cat", "a"], max_length=4)
    assert tokens.tolist() == [[1, 4, 5, 2], [1, 4, 2, 0]]
    assert lengths.tolist() == [4, 3]


def test_rare_words_and_words_beyond_the_size_are_left_out():
    assert len(Vocabulary.build(CAPTIONS, min_count=2)) == 4 + 4
    assert len(Vocabulary.build(CAPTIONS, max_size=6)) == 6
    tokens, _ = Vocabulary.build(CAPTIONS, max_size=6).encode(["a cat dog"])
    assert tokens.tolist() == [[1, 4, 5, 3, 2]]


def test_the_order_of_the_captions_does_not_matter(tmp_path):
    shuffled = CAPTIONS[:]
    random.Random(3).shuffle(shuffled)
    Vocabulary.build(CAPTIONS).save(tmp_path / "a.json")
    Vocabulary.build(iter(shuffled)).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_saved_vocabulary_encodes_the_same_and_saves_the_same(tmp_path):
    vocabulary = Vocabulary.build(CAPTIONS)
    vocabulary.encode(["a"], max_length=5)
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    loaded.save(tmp_path / "w.json")
    assert loaded.encode(CAPTIONS)[0].tolist() == vocabulary.encode(CAPTIONS)[0].tolist()
    assert (tmp_path / "v.json").read_bytes() == (tmp_path / "w.json").read_bytes()


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"}', "\x80binary"])
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, text):
    path = tmp_path / "vocabulary.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"vocabulary\.json: not a vocabulary"):
        Vocabulary.load(path)


def test_a_missing_vocabulary_and_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Vocabulary.load(tmp_path / "vocabulary.json")
    with pytest.raises(UserError, match="max_size 4"):
        Vocabulary.build(CAPTIONS, max_size=4)
    with pytest.raises(UserError, match="max_length is 2"):
        Vocabulary.build(CAPTIONS).encode(["a"], max_length=2)
