"""What a rank loads of its share, against rows picked one by one, and data that does not fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from hetsched.batch import Batch, Item, Placeholder, Sample
from hetsched.errors import DataError
from hetsched.layout.held import Held
from hetsched.layout.shares import Share
from hetsched.layout.tokens import Group, spread_zigzag
from hetsched.runtime.feed import load_held
from hetsched.runtime.parcel import Parcel

LENGTHS = (7, 3, 12)
CPU = torch.device("cpu")
Change = Callable[[Tensor], Tensor]


class Numbers:
    """Samples of two tensors; the features of one of them may be changed, or its ids."""

    def __init__(self, *, features: Change | None = None, ids: Change | None = None) -> None:
        self._changes = {"features": features, "ids": ids}

    def describe(self, index: int) -> Sample:
        return Sample(index, LENGTHS[index], weight=1)

    def load_sample(self, index: int) -> Mapping[str, Tensor]:
        drawn = torch.Generator().manual_seed(index)
        length = LENGTHS[index]
        tensors = {"features": torch.randn(length, 2, 3, generator=drawn), "ids": torch.arange(length) + 100 * index}
        for name, change in self._changes.items():
            if change is not None and index == 1:
                tensors[name] = change(tensors[name])
        return tensors

    def load_item(self, module: str, key: int) -> Mapping[str, Tensor]:
        raise AssertionError("there are none")


def load(
    source: Numbers, *, tokens: object = None, cp: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    batch, parcel = Batch.of(source, range(3)), Parcel(CPU, dtype)
    parts = load_held(batch, Held(Share(batch.samples, LENGTHS, 0), tokens), cp=cp)
    packed = {key: parcel.add(of_key) for key, of_key in parts.items()}
    parcel.send()
    return {key: of_key.tensor for key, of_key in packed.items()}


def whole(name: str) -> Tensor:
    return torch.cat([Numbers().load_sample(index)[name] for index in range(3)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_share_is_its_members_one_after_the_other(dtype: torch.dtype) -> None:
    found = load(Numbers(), dtype=dtype)
    assert found.keys() == {"features", "ids"}
    assert torch.equal(found["features"], whole("features").to(dtype)) and found["features"].dtype == dtype
    assert torch.equal(found["ids"], whole("ids")) and found["ids"].dtype == torch.int64


def test_a_rank_of_context_parallelism_has_its_own_rows() -> None:
    tokens = spread_zigzag(sum(LENGTHS), Group(cp=2))
    held = Held(Share(Batch.of(Numbers(), range(3)).samples, LENGTHS, 0), tokens)
    for cp in range(2):
        found = load(Numbers(), tokens=tokens, cp=cp)
        rows = torch.from_numpy(held.positions(cp))
        assert 0 < len(rows) < sum(LENGTHS)
        assert torch.equal(found["ids"], whole("ids")[rows])
        assert torch.equal(found["features"], whole("features")[rows].double())


def test_nothing_is_loaded_of_an_empty_share() -> None:
    batch = Batch.of(Numbers(), range(3))
    assert load_held(batch, Held(Share((), (), 0)), cp=0) == {}


def test_features_may_come_in_several_floating_point_types() -> None:
    found = load(Numbers(features=lambda x: x.to(torch.float16)))["features"]
    assert torch.equal(found[7:10], whole("features")[7:10].to(torch.float16).double())


def test_large_finite_numbers_are_no_fault() -> None:
    """Their sum is infinite in float32."""
    found = load(Numbers(features=lambda x: torch.full_like(x, 3e38)))["features"]
    assert bool((found[7:10] > 2e38).all())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Numbers(features=lambda x: x.index_fill(0, torch.tensor([2]), torch.nan)), "'features' holds NaN or infinity"),
        (Numbers(features=lambda x: torch.full_like(x, torch.inf)), "'features' holds NaN or infinity"),
        (
            Numbers(features=lambda x: x[:, :1]),
            r"'features' has rows \[1, 3\] .* others are \[2, 3\]",
        ),
        (Numbers(ids=lambda x: x.to(torch.int32)), r"'ids' has rows \[\] of torch.int32, .* of torch.int64"),
        (Numbers(ids=lambda x: x[1:]), r"'ids' has shape \[2\], but is described as 3 long; load 3 rows, and repeat"),
        (Numbers(ids=lambda x: x[1]), r"'ids' has shape \[\], but is described as 3 long; load 3 rows, and repeat"),
        (Numbers(ids=lambda x: x.numpy()), r"load_sample returned a ndarray as 'ids'; return a mapping of names to"),
    ],
    ids=["NaN", "infinity", "rows of another width", "another integer type", "too short", "one number", "numpy"],
)
def test_what_does_not_fit_names_the_sample(source: Numbers, said: str) -> None:
    with pytest.raises(DataError, match=f"sample 1: {said}"):
        load(source)


@pytest.mark.parametrize("loaded", [None, (), torch.zeros(3)])
def test_what_is_no_mapping_names_the_loader(loaded: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "load_sample", lambda *_: loaded)
    said = f"sample 0: load_sample returned a {type(loaded).__name__}; return a mapping of names to tensors"
    with pytest.raises(DataError, match=said):
        load(Numbers())


def test_an_item_that_is_no_mapping_names_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbers, "load_item", lambda *_: None)
    item = Item("vision", np.int64(4), num_inputs=2, num_rows=1)
    batch = Batch(Numbers(), (Sample(6, 3, weight=1, placeholders=(Placeholder(item, 0),)),))
    with pytest.raises(DataError, match="sample 6: item 4 of module vision: load_item returned a NoneType; return"):
        load_held(batch, Held(Share((item,), (2,), 1)), cp=0)


def test_a_key_that_is_no_integer_is_told_where_the_item_is_made() -> None:
    with pytest.raises(TypeError, match=r"Item\.key must be an integer, not 'a\.wav': number the items"):
        Item("audio", "a.wav", num_inputs=2, num_rows=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [2**63, -(2**63) - 1])
def test_a_key_that_no_digest_can_hold_is_refused(key: int) -> None:
    with pytest.raises(ValueError, match=rf"Item\.key is {key}; it has 64 bits at most"):
        Item("audio", key, num_inputs=2, num_rows=1)


def test_tensors_of_a_parcel_have_memory_and_changes_of_their_own() -> None:
    parcel = Parcel(CPU, torch.float64)
    of_parcel = [
        parcel.add([(torch.ones(3, 5), None), (torch.full((2, 5), 2.0), torch.tensor([1]))]),
        parcel.add_integers([1, 2, 3], torch.int32),
        parcel.add_integers([], torch.int64),
        parcel.add([(torch.tensor([True, False]), None)]),
    ]
    parcel.send()
    rows, numbers, none, flags = (packed.tensor for packed in of_parcel)
    assert rows.dtype == torch.float64 and rows.tolist() == [[1.0] * 5] * 3 + [[2.0] * 5]
    assert numbers.dtype == torch.int32 and numbers.tolist() == [1, 2, 3]
    assert none.shape == (0,) and none.dtype == torch.int64
    assert flags.tolist() == [True, False]
    weight = torch.ones(5, dtype=torch.float64, requires_grad=True)
    loss = (rows * weight).sum()
    numbers += 1
    loss.backward()
    assert weight.grad is not None and rows.tolist()[3] == [2.0] * 5


def test_a_parcel_may_have_no_bytes() -> None:
    parcel = Parcel(CPU, torch.float32)
    none = parcel.add_integers([], torch.int32)
    parcel.send()
    assert none.tensor.shape == (0,) and none.tensor.dtype == torch.int32
