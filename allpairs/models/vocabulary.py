"""The words a caption encoder knows, and captions as token ids."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from allpairs.errors import UserError
from allpairs.files import write_text

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")


def _splitter() -> Tokenizer:
    # Punctuation is dropped, as in the tokens of the Karpathy splits; so no caption can spell a special token.
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    return tokenizer


class Vocabulary:
    """Lower-case words ↔ ids, with pad, start, end and unknown as 0 to 3."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int = 1, max_size: int | None = None) -> "Vocabulary":
        """Collect the words that occur at least `min_count` times in `captions`, the most frequent ones first.

        `max_size` bounds the vocabulary, its four special tokens included. The order of `captions` does not matter.
        """
        counter = _splitter()
        room = 2**31 if max_size is None else max_size - len(SPECIAL)
        if room < 1 or min_count < 1:
            raise UserError(f"vocabulary: min_count {min_count} and max_size {max_size} leave no room for a word")
        counter.train_from_iterator(
            captions, trainers.WordLevelTrainer(vocab_size=room, min_frequency=min_count, show_progress=False)
        )
        ranks = counter.get_vocab()
        words = [*SPECIAL, *sorted(ranks, key=ranks.__getitem__)]

        tokenizer = _splitter()
        tokenizer.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[UNKNOWN])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{SPECIAL[START]} $0 {SPECIAL[END]}",
            special_tokens=[(SPECIAL[START], START), (SPECIAL[END], END)],
        )
        return cls(tokenizer)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, captions: Sequence[str], max_length: int = 64) -> tuple[Tensor, Tensor]:
        """Return token ids int64 `[b, L]`, padded with 0, and lengths int64 `[b]`, start and end included.

        L is the longest caption's length, at most `max_length`; an empty caption has start and end only.
        """
        if max_length < 3:
            raise UserError(f"max_length is {max_length}; accepted: 3 or more (start, a word, end)")
        self._tokenizer.enable_truncation(max_length)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(captions))]
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        tokens = torch.full((len(ids), max(map(len, ids), default=0)), PAD, dtype=torch.int64)
        for row, values in zip(tokens, ids, strict=True):
            row[: len(values)] = torch.tensor(values, dtype=torch.int64)
        return tokens, lengths

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as one JSON file in the format of the tokenizers library."""
        write_text(Path(path), self._tokenizer.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what `save` wrote; a UserError that names the file when it is missing or no vocabulary of ours."""
        try:
            tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"vocabulary {path}: no such file") from None
        except Exception as error:  # tokenizers raises bare Exception for anything it can't parse
            raise UserError(f"vocabulary {path}: not a vocabulary ({error})") from None
        if [tokenizer.id_to_token(i) for i in range(len(SPECIAL))] != list(SPECIAL):
            raise UserError(f"vocabulary {path}: its first four tokens are not {', '.join(SPECIAL)}")
        return cls(tokenizer)
