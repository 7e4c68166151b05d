"""Which words are the same and which are not, in the scripts of the world."""

import unicodedata

import pytest

from retrieval_eval.page.folding import bare, fold, is_spaceless, letters, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bóng ĐÁ", "bong da"),  # Vietnamese
        ("İSTANBUL ığdır", "istanbul igdir"),  # Turkish, dotted and dotless
        ("Łódź Ørsted Ħal", "lodz orsted hal"),
        ("Straße STRASSE ẞ", "strasse strasse ss"),
        ("Æther œuvre Þór ðað ŋ", "aether oeuvre thor dad n"),
        ("ﬁsh Ｆｕｌｌ ①", "fish full 1"),
        ("ΣΊΣΥΦΟΣ Ὀδυσσεύς", "σισυφος οδυσσευς"),  # Greek, both lower-case sigmas
        ("за́мок ёлка ЁЖ", "замок елка еж"),  # Russian: stress marks, ё
        ("カﾞラス ｶﾞﾗｽ", "ガラス ガラス"),  # half-width, with the voicing mark apart
        ("مـــدرسة", "مدرسة"),  # stretched letters
        ("می‌خواهم", "میخواهم"),  # Persian, a joiner that is not seen
        ("한국어", "한국어"),  # Hangul by syllables and by letters
    ],
)
def test_the_same_words(one, other):
    assert {fold(unicodedata.normalize(form, one)) for form in ("NFC", "NFD")} == {fold(other)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("कि", "की"),  # Hindi: that; of
        ("कल", "कला"),  # tomorrow; art
        ("बंदर", "बदर"),  # a nasal sound
        ("मई", "मै"),
        ("কই", "কি"),  # Bengali
        ("ไม้", "ไม"),  # Thai: a tone
        ("か", "が"),  # Japanese: mosquito; a particle
        ("мой", "мои"),  # Russian: my, of one and of many
        ("їх", "іх"),  # Ukrainian
        ("سؤال", "سوال"),  # Arabic: hamza is a letter
        ("كُتُب", "كَتَبَ"),  # books; he wrote
        ("שָׁמַר", "שֶׁמֶר"),
        ("ə", "e"),  # Azerbaijani: a letter of its own
        ("한", "하"),
    ],
)
def test_different_words(one, other):
    assert not {fold(unicodedata.normalize(form, one)) for form in ("NFC", "NFD")} & {fold(other)}


def test_points_may_be_written_or_not():
    assert bare(fold("كُتُب")) == bare(fold("كَتَبَ")) == "كتب"
    assert bare(fold("שָׁלוֹם")) == "שלום"
    assert bare(fold("سُؤَال")) == "سؤال"


def test_words():
    assert words(fold("A dog's ball, 3 C++ ★ (rouge-et-noir) photo_0417.JPG")) == [
        *("a", "dog", "s", "ball", "3", "c", "++", "★", "rouge", "et", "noir", "photo", "0417", "jpg")
    ]
    assert words(fold("東京タワーの夜red dog コーヒー")) == ["東京タワーの夜", "red", "dog", "コーヒー"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("…") == []
    assert [is_spaceless(word) for word in ("東京", "ไม้", "한국어", "red", "हिन्दी")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_every_letter_becomes_a_plain_one():
    assert {letters()[letter] for letter in "đøłħŧƀɨʉıßɖ"} == {*"dolhtbiui", "ss"}
    for letter, plain in letters().items():
        assert fold(letter) == fold(letter.upper()) == plain == fold(plain)
