"""The tokenizer that a pretrained text model came with, in the same words as `Vocabulary`."""

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allpairs.errors import UserError
from allpairs.models.hub import configuration, is_model_type, quietly
from allpairs.models.spec import DualSpec, TextTransformersSpec, WholeSpec
from allpairs.models.vocabulary import Vocabulary

FOLDER, VOCABULARY = "tokenizer", "vocabulary.json"

# Their text towers read a caption at its full length, padding included, as they were trained.
READS_PADDING = ("siglip_text_model", "siglip2_text_model")
# Their positions are numbered from behind the padding id.
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text", "mpnet")


class PretrainedTokenizer:
    """A tokenizer of the transformers library; safe to call from several threads.

    Padding follows the caption, except for a text tower that reads it: there it stands where the tokenizer puts it.
    """

    def __init__(self, tokenizer: Any, *, positions: int, full_length: bool = False) -> None:
        tokenizer.truncation_side = "right"
        tokenizer.model_max_length = positions
        self._left = full_length and tokenizer.padding_side == "left"
        self.positions = positions
        self._tokenizer = tokenizer
        self._full_length = full_length
        self._lock = threading.Lock()  # its padding and truncation are a state that all calls share

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, captions: Sequence[str], max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return token ids int64 `[b, L]` and lengths int64 `[b]`; longer captions are cut to `max_length` tokens
        (without it: to the positions of the text model).

        L is the longest caption's length or, for a text tower that reads its padding, the number of its positions.
        """
        max_length = self.positions if max_length is None else max_length
        if not 1 <= max_length <= self.positions:
            raise UserError(
                f"max_length is {max_length}; accepted: 1 to {self.positions}, the positions of the text model"
            )
        if not captions:
            return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        with self._lock:
            rows = self._tokenizer(list(captions), truncation=True, max_length=max_length)["input_ids"]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        width = self.positions if self._full_length else int(lengths.max())
        tokens = torch.full((len(rows), width), self._tokenizer.pad_token_id, dtype=torch.int64)
        for row, values in zip(tokens, rows, strict=True):
            start = width - len(values) if self._left else 0
            row[start : start + len(values)] = torch.tensor(values, dtype=torch.int64)
        return tokens, lengths

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer in the library's own format."""
        self._tokenizer.save_pretrained(str(folder))


Tokens = Vocabulary | PretrainedTokenizer
"""What turns captions into token ids: `encode` and the number of ids."""


def text_positions(spec: DualSpec | WholeSpec) -> int | None:
    """Return how many tokens the text side of `spec` can read; None for a recurrent one, which reads any number.

    Raises:
        UserError: the configuration cannot be had.
    """
    text = _pretrained_text(spec)
    if text is None:
        return None
    config = configuration(text, _key(spec), "text")
    positions = int(getattr(config, "max_position_embeddings", 512))
    return positions - config.pad_token_id - 1 if config.model_type in _POSITIONS_AFTER_PADDING else positions


def make_tokens(spec: DualSpec | WholeSpec, captions: Callable[[], Iterable[str]], **vocabulary: Any) -> Tokens:
    """Return the tokenizer of a pretrained text side, or else the vocabulary of `captions()`, called only then.

    Raises:
        UserError: a hub id or folder without a tokenizer.
    """
    text = _pretrained_text(spec)
    if text is None or is_model_type(text):
        return Vocabulary.build(captions(), **vocabulary)
    positions = text_positions(spec)
    assert positions is not None, "a text side of transformers has positions"
    tokenizer = _load(text.name, _key(spec))
    config = configuration(text, _key(spec), "text")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{_key(spec)}.name: the tokenizer of {text.name!r} has {len(tokenizer)} tokens, "
            f"its text model {config.vocab_size}"
        )
    return PretrainedTokenizer(tokenizer, positions=positions, full_length=config.model_type in READS_PADDING)


def check_text(spec: DualSpec | WholeSpec, longest: int) -> None:
    """Check, before anything is built, the text side of `spec` for captions of `longest` tokens.

    Raises:
        UserError: no such model, no tokenizer, or fewer positions than that.
    """
    text, positions = _pretrained_text(spec), text_positions(spec)
    if text is not None and not is_model_type(text):
        _load(text.name, _key(spec))
    if positions is not None and longest > positions:
        raise UserError(
            f"data.max_caption_tokens={longest}: the text model of {_key(spec)} reads at most {positions} tokens; "
            f"accepted: up to {positions}"
        )


def save_tokens(folder: str | Path, tokens: Tokens) -> None:
    """Write `tokens` into `folder`: vocabulary.json, or a tokenizer's files below tokenizer/."""
    tokens.save(Path(folder) / (VOCABULARY if isinstance(tokens, Vocabulary) else FOLDER))


def load_tokens(folder: str | Path, spec: DualSpec | WholeSpec) -> Tokens:
    """Read what `save_tokens` wrote for the self-contained `spec`, or for the one it was made from."""
    own = Path(folder) / FOLDER
    if not own.is_dir():
        return Vocabulary.load(Path(folder) / VOCABULARY)
    text = _pretrained_text(spec)
    positions = text_positions(spec)
    if text is None or positions is None:
        raise UserError(f"{own}: a tokenizer, but the model it lies beside has a text side without one")
    config = configuration(text, _key(spec), "text")
    return PretrainedTokenizer(
        _load(str(own), _key(spec)), positions=positions, full_length=config.model_type in READS_PADDING
    )


def _key(spec: DualSpec | WholeSpec) -> str:
    return "model" if isinstance(spec, WholeSpec) else "model.text"


def _pretrained_text(spec: DualSpec | WholeSpec) -> WholeSpec | TextTransformersSpec | None:
    if isinstance(spec, WholeSpec):
        return spec
    return spec.text if isinstance(spec.text, TextTransformersSpec) else None


def _load(name: str, key: str) -> Any:
    from transformers import AutoTokenizer

    folder = Path(name)
    files = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
    lacking = f"{key}.name: {name!r} has no tokenizer"
    # Of a folder without these files the library makes an empty tokenizer rather than an error.
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        raise UserError(f"{lacking}: none of {', '.join(files)} is in it; save the tokenizer beside the weights")
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(name)
    except ImportError as error:
        package = re.search(r"requires the (\w+) library", str(error))
        what = (
            f"it needs a package: pip install {package[1].lower()}" if package else " ".join(str(error).split())[:300]
        )
        raise UserError(f"{lacking} that loads: {what}") from None
    except Exception as error:  # a file it cannot parse, the hub
        raise UserError(f"{lacking} that loads: {' '.join(str(error).split())[:300]}") from None
    if tokenizer.pad_token_id is None:
        raise UserError(f"{lacking} with a padding token; set pad_token in its tokenizer_config.json")
    return tokenizer
