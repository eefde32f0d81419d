"""Questions about images of numbers, drawn at random: which scans, which text, which answer; no pixels.

Images are named by letters: ``A <image> B <image> <image> read B =`` is answered ``4 2 <end>``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from types import MappingProxyType

from hetsched.train.scans import Split, label, scans_of
from hetsched.train.tokenizer import END, IMAGE, Tokenizer

ENCODER = "vision"
"""The module whose items the images are."""
LETTERS = "ABCDEF"
"""Names of the images of a sample; their number is the most that a sample has."""
MAX_DIGITS = 3
"""Digits of the widest image."""
NUM_VARIANTS = 16
"""Augmented variants of an image in the training split."""
TOKENIZER = Tokenizer([IMAGE, END, *"0123456789", *LETTERS, "=", "+", "read", "all", "count", "images", "larger"])
"""All that questions and answers are written with."""
DEFAULT_MIX: Mapping[str, float] = MappingProxyType(
    {"number": 0.35, "read": 0.25, "larger": 0.2, "count": 0.05, "add": 0.05, "text": 0.1}
)
"""Share of each kind of question."""
PIXEL_KINDS = frozenset({"number", "read", "larger"})
"""Kinds whose answer cannot be known without looking."""

_SCAN_BITS = 11
_REPEATS = 0.1


@dataclass(frozen=True, slots=True)
class NumberImage:
    """An image of a number: scans of its digits side by side.

    Args:
        scans: one to three indices of scans.
        variant: which augmented variant of the scans; 0 shows them as they are.
    """

    scans: tuple[int, ...]
    variant: int = 0

    @property
    def text(self) -> str:
        """The digits that it shows."""
        return "".join(str(label(scan)) for scan in self.scans)

    @property
    def key(self) -> int:
        """The image as one integer: equal images have equal keys."""
        key = self.variant
        for place in range(MAX_DIGITS):
            key = key << _SCAN_BITS | (self.scans[place] + 1 if place < len(self.scans) else 0)
        return key

    @classmethod
    def of_key(cls, key: int) -> NumberImage:
        """The image whose `key` this is."""
        shifts = range(_SCAN_BITS * (MAX_DIGITS - 1), -1, -_SCAN_BITS)
        fields = [key >> shift & (1 << _SCAN_BITS) - 1 for shift in shifts]
        return cls(tuple(field - 1 for field in fields if field), key >> _SCAN_BITS * MAX_DIGITS)


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Args:
        kind: a key of `DEFAULT_MIX`.
        prompt: text and images, in order.
        answer: text, without its end.
    """

    kind: str
    prompt: tuple[str | NumberImage, ...]
    answer: str


def draw_question(rng: Random, *, split: Split, mix: Mapping[str, float]) -> Question:
    """A random question.

    Args:
        rng: all randomness; the same state gives the same question.
        split: where the scans are from; only training images have augmented variants.
        mix: share of each kind.
    """
    (kind,) = rng.choices(list(mix), weights=list(mix.values()))
    return _KINDS[kind](_Draw(rng, split))


@cache
def _leading(split: Split) -> tuple[int, ...]:
    """Scans that may begin a number of several digits."""
    return tuple(scan for scan in scans_of(split) if label(scan) != 0)


@dataclass(frozen=True, slots=True)
class _Draw:
    """What the kinds of questions are drawn from."""

    rng: Random
    split: Split

    def image(self, widths: tuple[int, ...]) -> NumberImage:
        """An image of 1, 2 or 3 digits with odds ``widths``."""
        (width,) = self.rng.choices(range(1, len(widths) + 1), weights=widths)
        first = self.rng.choice(scans_of(self.split) if width == 1 else _leading(self.split))
        rest = (self.rng.choice(scans_of(self.split)) for _ in range(width - 1))
        return NumberImage((first, *rest), self.rng.randint(1, NUM_VARIANTS) if self.split == "train" else 0)

    def images(self, num_images: int, widths: tuple[int, ...]) -> list[NumberImage]:
        """Images of one sample; now and then one of them comes back."""
        images: list[NumberImage] = []
        for _ in range(num_images):
            is_repeat = images and self.rng.random() < _REPEATS
            images.append(self.rng.choice(images) if is_repeat else self.image(widths))
        return images


def _named(images: list[NumberImage]) -> tuple[str | NumberImage, ...]:
    return tuple(part for pair in zip(LETTERS, images, strict=False) for part in pair)


def _number(draw: _Draw) -> Question:
    """The number in one image of several."""
    images = draw.images(draw.rng.choices(range(1, 7), weights=(6, 5, 4, 3, 2, 1))[0], (5, 3, 2))
    asked = draw.rng.randrange(len(images))
    return Question("number", (*_named(images), f"read {LETTERS[asked]} ="), images[asked].text)


def _read(draw: _Draw) -> Question:
    """The numbers of all images, in order."""
    images = draw.images(draw.rng.choices((1, 2, 3), weights=(2, 3, 1))[0], (5, 3, 2))
    answer = " ".join(f"{letter} {image.text}" for letter, image in zip(LETTERS, images, strict=False))
    return Question("read", (*_named(images), "read all ="), answer)


def _larger(draw: _Draw) -> Question:
    """The larger of two numbers."""
    images = draw.images(2, (5, 3))
    return Question("larger", (*_named(images), "larger ="), max((i.text for i in images), key=int))


def _count(draw: _Draw) -> Question:
    """How many images there are, none included."""
    images = draw.images(draw.rng.randint(0, 6), (5, 3, 2))
    return Question("count", (*_named(images), "count images ="), str(len(images)))


def _add(draw: _Draw) -> Question:
    """The sum of two digits; text only."""
    a, b = draw.rng.randrange(10), draw.rng.randrange(10)
    return Question("add", (f"{a} + {b} =",), str(a + b))


def _text(draw: _Draw) -> Question:
    """As `number`, of digits written out; text only."""
    words = [str(draw.rng.randrange(10 ** draw.rng.randint(1, 3))) for _ in range(draw.rng.randint(1, 4))]
    asked = draw.rng.randrange(len(words))
    named = " ".join(f"{letter} {word}" for letter, word in zip(LETTERS, words, strict=False))
    return Question("text", (f"{named} read {LETTERS[asked]} =",), words[asked])


_KINDS: Mapping[str, Callable[[_Draw], Question]] = MappingProxyType(
    {"number": _number, "read": _read, "larger": _larger, "count": _count, "add": _add, "text": _text}
)
