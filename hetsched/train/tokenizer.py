"""A tokenizer of known words and single characters."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hetsched.errors import DataError

IMAGE = "<image>"
"""Stands where a row of an image goes, once for each row."""
END = "<end>"
"""Ends an answer."""

_PIECE = re.compile(r"<[a-z]+>|[a-z]+|\S")


class Tokenizer:
    """Text to token ids and back; white space separates words and is no token.

    Args:
        vocabulary: words and characters; a token's id is its index.
    """

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._tokens = tuple(vocabulary)
        self._ids = {token: index for index, token in enumerate(self._tokens)}

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def id(self, token: str) -> int:
        """The id of one token.

        Raises:
            DataError: the token is not in the vocabulary.
        """
        if token not in self._ids:
            raise DataError(f"{token!r} is not in the vocabulary: {' '.join(self._tokens)}")
        return self._ids[token]

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words and characters.

        Raises:
            DataError: a word or character is not in the vocabulary.
        """
        return [self.id(piece) for piece in _PIECE.findall(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The tokens of ``ids``, separated by spaces."""
        return " ".join(self._tokens[index] for index in ids)
