// What a search finds: all of its words, in any order, whole; as folding.py folds and cuts them.
const MARKED = /((?=\p{L})[\p{Script=Latin}\p{Script=Greek}])\p{M}+/gu;
const STRESSED = /((?=\p{L})\p{Script=Cyrillic})\p{M}+/gu;
const POINTS = /[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed]/gu;
const LOOKS = /[\u00ad\u0640\u200c-\u200f\u2060\ufe00-\ufe0f\ufeff]/gu;
const SPACELESS = "(?:(?=[\\p{L}\\p{N}])[\\p{scx=Han}\\p{scx=Hira}\\p{scx=Kana}\\p{sc=Bopo}]"
  + "|(?=[\\p{L}\\p{M}\\p{N}])[\\p{sc=Thai}\\p{sc=Lao}\\p{sc=Khmer}\\p{sc=Mymr}\\p{sc=Tibt}])";
const WORDS = new RegExp(`(${SPACELESS}(?:${SPACELESS}|\\p{M})*|\\p{S}+)|(?:(?!${SPACELESS})[\\p{L}\\p{M}\\p{N}]\\p{M}*)+`, "gu");
const ASCII = /^[\0-\x7f]*$/;

const fold = (text) => {
  if (ASCII.test(text)) return text.toLowerCase();
  const letters = block("data").letters;
  const plain = text.replace(LOOKS, "").normalize("NFKD").replace(MARKED, "$1").normalize("NFC").replace(STRESSED, "$1");
  return plain.toLowerCase().replace(/[^\0-\x7f]/gu, (letter) => letters[letter] ?? letter);
};
const words = (folded) => folded.match(WORDS) ?? [];

// A text to search in: its words between blanks, those with Arabic or Hebrew points without them too.
const haystack = (text) => {
  const folded = fold(text);
  const bare = folded.replace(POINTS, "");
  return ` ${[...words(folded), ...(bare === folded ? [] : words(bare))].join(" ")} `;
};

// Whether a haystack holds the words as whole ones; parts of a word in scripts without spaces, and where `parts` says so.
const needles = (wanted) => [...fold(wanted).matchAll(WORDS)].map(([word, anywhere]) => ({ word, whole: anywhere ? word : ` ${word} ` }));
const holds = (text, wanted, parts) => wanted.every(({ word, whole }) => text.includes(parts ? word : whole));
