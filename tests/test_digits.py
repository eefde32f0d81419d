"""The digits: deterministic, disjoint, described as loaded; every fault is a DataError that names the sample."""

import pickle
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hetsched.batch import Batch, Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.plan import parse_plan
from hetsched.train.checks import CheckedSource, check_item, check_sample
from hetsched.train.digits import DigitsSource, merge_order
from hetsched.train.metrics import Tally, exact_answers, of_pixels, swap_items, tally
from hetsched.train.questions import DEFAULT_MIX, PIXEL_KINDS, TOKENIZER, NumberImage, draw_question
from hetsched.train.scans import Augmentation, label, pixels, scans_of

HELD_OUT = DigitsSource("held_out", seed=1, patch=4, merge=2)
TRAIN = DigitsSource("train", seed=1, patch=4, merge=2)
FIRST = range(300)
PLAN = """
name = "digits"
world_size = 1
microbatches = 1
modules = {{ vision.first_rank = 0, llm.first_rank = 0 }}
boundaries = [{{ producer = "vision", consumer = "llm" }}]

[model]
vision = {{ kind = "vision", layers = 1, hidden = 4, heads = 1, ffn = 4, patch = {patch}, merge = {merge} }}
llm = {{ kind = "decoder", layers = 1, hidden = 4, heads = 1, kv_heads = 1, ffn = 4, vocab = {vocab} }}
"""


def images_of(source: DigitsSource) -> list[NumberImage]:
    return [NumberImage.of_key(p.item.key) for i in FIRST for p in source.describe(i).placeholders]


def test_the_scans_are_those_of_scikit_learn() -> None:
    digits = load_digits()
    np.testing.assert_allclose(np.stack([pixels(i) for i in range(len(digits.target))]), digits.images / 8 - 1)
    assert [label(i) for i in range(len(digits.target))] == digits.target.tolist()


def test_no_scan_is_in_both_splits_and_none_is_lost() -> None:
    train, held_out = set(scans_of("train")), set(scans_of("held_out"))
    assert not train & held_out
    assert len(train | held_out) == 1797
    assert {label(scan) for scan in held_out} == set(range(10))


@pytest.mark.parametrize(("source", "split"), [(TRAIN, "train"), (HELD_OUT, "held_out")])
def test_samples_show_scans_of_their_own_split(source: DigitsSource, split: str) -> None:
    assert {scan for image in images_of(source) for scan in image.scans} <= set(scans_of(split))


def test_held_out_images_are_shown_as_they_are_and_training_images_are_not() -> None:
    assert {image.variant for image in images_of(HELD_OUT)} == {0}
    assert 0 not in {image.variant for image in images_of(TRAIN)}


def test_a_sample_depends_on_seed_split_and_index_alone() -> None:
    again = DigitsSource("train", seed=1, patch=4, merge=2)
    assert [again.describe(i) for i in reversed(FIRST)] == [TRAIN.describe(i) for i in reversed(FIRST)]
    key = TRAIN.describe(0).placeholders[0].item.key
    assert torch.equal(again.load_item("vision", key)["patches"], TRAIN.load_item("vision", key)["patches"])
    other = DigitsSource("train", seed=2, patch=4, merge=2)
    assert [other.describe(i) for i in FIRST] != [TRAIN.describe(i) for i in FIRST]


def test_a_source_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(TRAIN)).describe(7) == TRAIN.describe(7)


@pytest.mark.parametrize(("patch", "merge"), [(4, 2), (2, 2), (2, 4), (1, 4), (8, 1)])
def test_what_is_described_is_what_is_loaded(patch: int, merge: int) -> None:
    source = DigitsSource("train", seed=3, patch=patch, merge=merge)
    plan = parse_plan(PLAN.format(patch=patch, merge=merge, vocab=source.vocab_size))
    checked = CheckedSource(source, plan, placeholder_id=source.placeholder_id)
    for index in FIRST[:60]:
        sample, inputs = checked.describe(index), checked.load_sample(index)
        assert {name: len(tensor) for name, tensor in inputs.items()} == dict.fromkeys(inputs, sample.num_tokens)
        for item in (placeholder.item for placeholder in sample.placeholders):
            loaded = checked.load_item("vision", item.key)
            assert {name: len(tensor) for name, tensor in loaded.items()} == dict.fromkeys(loaded, item.num_inputs)


def test_describing_looks_at_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("pixels were touched")

    monkeypatch.setattr("hetsched.train.scans.pixels", fail)
    monkeypatch.setattr(Augmentation, "variants", fail)
    DigitsSource("train", seed=5, patch=4, merge=2).describe(3)


def test_the_batch_is_as_mixed_as_the_runtime_must_bear() -> None:
    samples = [TRAIN.describe(i) for i in FIRST]
    assert {len(sample.placeholders) for sample in samples} == set(range(7))
    assert {p.item.num_rows for sample in samples for p in sample.placeholders} == {1, 2, 3}
    keys = [p.item.key for sample in samples for p in sample.placeholders]
    assert len(set(keys)) < len(keys), "no image is used twice"
    assert {TRAIN.kind(i) for i in FIRST} == set(DEFAULT_MIX)


def test_answers_are_true() -> None:
    rng, digits = Random(0), load_digits().target
    for _ in range(500):
        question = draw_question(rng, split="held_out", mix=DEFAULT_MIX)
        images = [part for part in question.prompt if isinstance(part, NumberImage)]
        shown = ["".join(str(digits[scan]) for scan in image.scans) for image in images]
        text = str(question.prompt[-1])
        match question.kind:
            case "number":
                assert question.answer == shown["ABCDEF".index(text.split()[1])]
            case "read":
                assert question.answer.split() == [w for pair in zip("ABC", shown, strict=False) for w in pair]
            case "larger":
                assert int(question.answer) == max(map(int, shown))
            case "count":
                assert int(question.answer) == len(shown)
            case "add":
                a, _, b, _ = text.split()
                assert int(question.answer) == int(a) + int(b)
            case "text":
                words = text.split()
                assert question.answer == words[words.index(words[-2]) + 1]


def test_labels_are_the_answer_shifted_by_one() -> None:
    for index in FIRST[:50]:
        inputs, question = TRAIN.load_sample(index), TRAIN.question(index)
        ids, labels = inputs["ids"], inputs["labels"]
        target = labels != -100
        assert TOKENIZER.decode(labels[target].tolist()) == TOKENIZER.decode(
            TOKENIZER.encode(question.answer + " <end>")
        )
        assert torch.equal(ids[1:][target[:-1]], labels[:-1][target[:-1]])
        assert TOKENIZER.decode([int(ids[target.nonzero()[0]])]) == "="


@pytest.mark.parametrize("scans", [(0,), (1796,), (0, 0), (5, 0, 1796), (1796, 1796, 1796)])
def test_a_key_holds_the_whole_image(scans: tuple[int, ...]) -> None:
    for variant in (0, 1, 16):
        image = NumberImage(scans, variant)
        assert NumberImage.of_key(image.key) == image
        assert 0 <= image.key < 2**63


def test_patches_put_back_in_place_are_the_scans_side_by_side() -> None:
    image = NumberImage((3, 100, 7))
    loaded = DigitsSource("held_out", seed=0, patch=2, merge=2).load_item("vision", image.key)
    canvas = np.full((8, 24), np.nan, dtype=np.float32)
    for patch, (row, column) in zip(loaded["patches"], loaded["row_col"].tolist(), strict=True):
        canvas[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch.view(2, 2).numpy()
    assert np.array_equal(canvas, np.concatenate([pixels(scan) for scan in image.scans], axis=1))


def test_patches_that_merge_follow_each_other() -> None:
    order = merge_order(2, 4, merge=2).tolist()
    assert order == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_variants_differ_from_the_scan_and_from_each_other_but_not_much() -> None:
    variants = Augmentation().variants(10, num_variants=4, seed=0)
    assert np.array_equal(variants[0], pixels(10))
    assert np.isfinite(variants).all()
    for i in range(5):
        for j in range(i):
            assert 0.01 < np.abs(variants[i] - variants[j]).mean() < 0.7
    still = Augmentation(shift=0, turn=0, zoom=0, contrast=0, noise=0).variants(10, num_variants=1, seed=0)
    np.testing.assert_allclose(still[1], pixels(10), atol=1e-5)


ITEM = Item("vision", 1, num_inputs=8, num_rows=2)
SAMPLE = Sample(7, num_tokens=5, weight=2, placeholders=(Placeholder(ITEM, 1),))
IDS = {"ids": torch.tensor([5, 0, 0, 3, 4]), "labels": torch.tensor([-100, -100, -100, 4, 1])}
IMAGE = {"patches": torch.zeros(8, 16), "row_col": torch.zeros(8, 2, dtype=torch.int64)}


def test_a_description_whose_rows_are_not_its_patches_is_rejected() -> None:
    class Described:
        def describe(self, index: int) -> Sample:
            item = ITEM if index == 7 else replace(ITEM, num_rows=3)
            return Sample(index, num_tokens=5, weight=2, placeholders=(Placeholder(item, 1),))

    checked = CheckedSource(Described(), parse_plan(PLAN.format(patch=4, merge=2, vocab=30)), placeholder_id=0)
    assert checked.describe(7) == SAMPLE
    with pytest.raises(DataError, match="sample 8: image 1 has 8 patches, 4 to a row, and cannot fill 3 rows"):
        checked.describe(8)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ids", [5, 0, 0, 3, 30], "token id 30 is outside the vocabulary of 30"),
        ("ids", [-1, 0, 0, 3, 4], "token id -1 is outside"),
        ("labels", [-100, -100, -100, 31, 1], "label 31 is outside"),
        ("ids", [5, 0, 2, 3, 4], "1 placeholder tokens for 2 rows; they differ first at position 2"),
        ("ids", [0, 0, 5, 3, 4], "2 placeholder tokens for 2 rows; they differ first at position 0"),
        ("labels", [-100, -100, -100, -100, 1], "1 labels, but its weight is 2"),
        ("ids", [5, 0, 0], r"ids is torch.int64 \[3\], not torch.int64 \[5\]"),
    ],
)
def test_a_loaded_sample_that_contradicts_its_description_is_rejected(
    name: str, values: list[int], message: str
) -> None:
    check_sample(SAMPLE, IDS, vocab=30, placeholder_id=0)
    with pytest.raises(DataError, match=f"^{message}"):
        check_sample(SAMPLE, IDS | {name: torch.tensor(values)}, vocab=30, placeholder_id=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": torch.zeros(8, 9)}, r"patches is torch.float32 \[8, 9\], not floating \[n, 16\]"),
        ({"patches": torch.zeros(128)}, r"patches is torch.float32 \[128\]"),
        ({"patches": torch.zeros(8, 16, dtype=torch.uint8)}, "patches is torch.uint8"),
        ({"row_col": torch.zeros(8, 3, dtype=torch.int64)}, r"row_col is torch.int64 \[8, 3\]"),
        ({"row_col": torch.zeros(7, 2, dtype=torch.int64)}, r"row_col is torch.int64 \[7, 2\]"),
        ({"row_col": torch.full((8, 2), -1)}, "a row or column is negative"),
    ],
)
def test_a_corrupt_image_is_rejected(change: dict[str, torch.Tensor], message: str) -> None:
    check_item(IMAGE, patch=4)
    with pytest.raises(DataError, match=f"^a corrupt image: {message}"):
        check_item(IMAGE | change, patch=4)


def test_a_word_outside_the_vocabulary_is_rejected() -> None:
    with pytest.raises(DataError, match="'why' is not in the vocabulary"):
        TOKENIZER.encode("read why")


def test_rows_that_do_not_divide_a_scan_are_rejected() -> None:
    with pytest.raises(DataError, match=r"rows of 6 pixels \(patch 3, merge 2\) do not divide 8"):
        DigitsSource("train", seed=0, patch=3, merge=2)


def test_swapping_gives_every_placeholder_an_image_of_another_sample() -> None:
    samples = Batch.of(HELD_OUT, FIRST).samples
    swapped = swap_items(samples)
    moved = []
    for before, after in zip(samples, swapped, strict=True):
        assert replace(after, placeholders=before.placeholders) == before
        check_sample(after, HELD_OUT.load_sample(after.index), vocab=HELD_OUT.vocab_size, placeholder_id=0)
        for old, new in zip(before.placeholders, after.placeholders, strict=True):
            assert replace(new, item=old.item) == old
            assert replace(new.item, key=old.item.key) == old.item
            moved.append(new.item.key != old.item.key)
    assert sum(moved) > 0.98 * len(moved), "a one-digit image may meet itself in another sample, rarely"
    keys = [sorted(p.item.key for s in each for p in s.placeholders) for each in (samples, swapped)]
    assert keys[0] == keys[1]


def test_a_lone_sample_cannot_swap_its_images() -> None:
    sample = next(s for i in FIRST if (s := HELD_OUT.describe(i)).placeholders)
    with pytest.raises(DataError, match="no other sample has an image to swap"):
        swap_items([sample])


def test_an_answer_is_exact_only_if_all_of_its_targets_are_correct() -> None:
    labels = torch.tensor([-100, 4, 1, -100, 5, 1, -100])
    correct = torch.tensor([False, True, True, False, True, False, False])
    assert exact_answers(correct, labels, [3, 4]) == [True, False]


def test_exact_match_is_counted_for_each_kind_and_for_those_that_need_pixels() -> None:
    tallies = tally(["read", "count", "read", "larger"], [True, False, False, True])
    assert tallies == {"count": Tally(0, 1), "larger": Tally(1, 1), "read": Tally(1, 2)}
    assert of_pixels(tallies) == Tally(2, 3)
    assert of_pixels(tallies).exact_match == pytest.approx(2 / 3)
    assert set(DEFAULT_MIX) > PIXEL_KINDS
    assert Tally(0, 0).exact_match == 0
