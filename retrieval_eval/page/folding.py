"""Words as they are compared: what a search on a page finds, and which captions say the same.

`fold` brings a text to one form:

- Unicode's spellings are one (composed or decomposed, full width or not), and case is none.
- Marks on Latin and Greek letters go (``bóng đá`` is ``bong da``), as do stress marks on Cyrillic ones and the dots of
  ё; й, ї, ў, ѓ and ќ are letters of their own and stay.
- Latin letters with a stroke, hook or tail, which Unicode does not take apart, become plain ones (``đ ø ł ħ``: ``d o l
  h``), and `OTHERS` what people type for them (``ß``: ``ss``). All else (``ə ɛ ɔ``) stays what it is.
- In any other script marks are vowels, tones or another letter (Devanagari ``कि`` and ``की``, Thai ``ไม้``, Japanese
  ``が``, Arabic ``ؤ``): they stay. Only the points of Arabic and Hebrew may be written or not, see `bare`.

`words` cuts it into runs of letters, digits and their marks. Scripts without spaces between words (Chinese, Japanese,
Thai, Lao, Khmer, Burmese, Tibetan) are runs of their own, and so are symbols: a search looks for a part of them.

``search.js`` does the same in the page, with the table `letters`; a test holds the two together.
"""

import re
import unicodedata
from functools import cache
from itertools import groupby

OTHERS = dict(
    zip("ßæœþðŋıȷĸɵʉςёѐѝ", ("ss", "ae", "oe", "th", "d", "n", "i", "j", "k", "o", "u", "σ", "е", "е", "и"), strict=True)
)
SPACELESS_MARKED = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
SPACELESS = (
    *("CJK ", "IDEOGRAPHIC ", "VERTICAL IDEOGRAPHIC ", "HANGZHOU ", "BOPOMOFO "),
    *("HIRAGANA ", "KATAKANA", "VERTICAL KANA ", "MASU ", *SPACELESS_MARKED),
)
# Hebrew accents and vowels, Arabic vowels and recitation marks; not madda and hamza, which make another letter.
POINTS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]"
)
# What changes how letters look and never what they are: joiners, directions, variants, soft hyphen, tatweel.
LOOKS = re.compile("[\u00ad\u0640\u200c-\u200f\u2060\ufe00-\ufe0f\ufeff]")


@cache
def letters() -> dict[str, str]:
    """Return the lower-case letters that become others."""
    found = dict(OTHERS)
    for code in range(0x80, 0x2C80):
        plain = re.fullmatch("LATIN SMALL LETTER ([A-Z]) WITH .*", unicodedata.name(chr(code), ""))
        if plain and unicodedata.normalize("NFKD", chr(code)) == chr(code):
            found[chr(code)] = plain[1].lower()
    return found


def fold(text: str) -> str:
    """Return `text` without what does not tell words apart."""
    if text.isascii():
        return text.lower()
    text = _without_marks(unicodedata.normalize("NFKD", LOOKS.sub("", text)), ("LATIN ", "GREEK "))
    # Composed, й and its like are letters without a mark.
    text = _without_marks(unicodedata.normalize("NFC", text), ("CYRILLIC ",))
    return "".join(letters().get(letter, letter) for letter in text.lower())


def bare(text: str) -> str:
    """Return a folded text without the points of Arabic and Hebrew."""
    return POINTS.sub("", text)


def words(text: str) -> list[str]:
    """Return the words of a folded text, in order."""
    kinds: list[str] = []
    for character in text:
        kind = _kind(character)
        kinds.append(kinds[-1] if kind == "mark" and kinds and kinds[-1] in ("word", "spaceless") else kind)
    runs = groupby(zip(text, kinds, strict=True), key=lambda pair: pair[1].replace("mark", "word"))
    return ["".join(character for character, _ in run) for kind, run in runs if kind]


def is_spaceless(word: str) -> bool:
    """Return whether a word is a run of a script without spaces, in which any part may be a word."""
    return _kind(word[0]) == "spaceless"


def _without_marks(text: str, scripts: tuple[str, ...]) -> str:
    kept: list[str] = []
    base = ""
    for character in text:
        if unicodedata.category(character)[0] != "M":
            base = character
        elif base.isalpha() and unicodedata.name(base, "").startswith(scripts):
            continue
        kept.append(character)
    return "".join(kept)


@cache
def _kind(character: str) -> str:
    """``word``, ``spaceless``, ``mark`` (of the letter before it), ``symbol``, or nothing: what separates words."""
    category, name = unicodedata.category(character)[0], unicodedata.name(character, "")
    if category in "LN":
        return "spaceless" if name.startswith(SPACELESS) else "word"
    if category == "M":
        return "spaceless" if name.startswith(SPACELESS_MARKED) else "mark"
    return "symbol" if category == "S" else ""
