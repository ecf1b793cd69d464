import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data.order import Place, PlaceSampler, check_batch, copies, length, order, steps_an_epoch


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int]:
    """(pairs, ranks, global batch) that `check_batch` accepts."""
    ranks = draw(st.integers(1, 9))
    batch = ranks * draw(st.integers(1, 5))
    return draw(st.integers(batch, 200)), ranks, batch


def share(
    plan: tuple[int, int, int],
    rank: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    first_step: int = 0,
    weights: NDArray[np.float64] | None = None,
) -> list[list[Place]]:
    """The places that `rank` reads: one list for each step."""
    count, ranks, batch = plan
    places = PlaceSampler(count, DataConfig(batch_size=batch, shuffle=shuffle), seed, rank, ranks, weights)
    places.epoch, places.first_step = epoch, first_step
    return list(places)


@settings(deadline=None)
@given(plans(), st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.booleans())
def test_ranks_share_an_epoch_exactly(plan: tuple[int, int, int], seed: int, epoch: int, shuffle: bool) -> None:
    count, ranks, batch = plan
    check_batch(batch, ranks, count)
    shares = [share(plan, rank, seed, epoch, shuffle) for rank in range(ranks)]
    steps = steps_an_epoch(count, batch)
    assert steps >= 1
    assert [len(s) for s in shares] == [steps] * ranks
    assert {len(b) for s in shares for b in s} == {batch // ranks}
    assert {(place.epoch, place.copy) for s in shares for b in s for place in b} == {(epoch, 0)}
    seen = [place.pair for step in zip(*shares, strict=True) for b in step for place in b]
    # No overlap, only the last incomplete batch is left out, and the global batches are those of a single process.
    assert len(set(seen)) == len(seen) == steps * batch > count - batch
    assert seen == order(count, seed, epoch, shuffle)[: steps * batch].tolist()
    assert sorted(order(count, seed, epoch, shuffle)) == list(range(count))


@settings(deadline=None)
@given(plans(), st.integers(0, 2**32), st.integers(0, 100), st.data())
def test_the_rest_of_an_epoch_is_its_tail_on_any_number_of_ranks(
    plan: tuple[int, int, int], seed: int, epoch: int, data: st.DataObject
) -> None:
    count, ranks, batch = plan
    first = data.draw(st.integers(0, steps_an_epoch(count, batch)))
    for rank in range(ranks):
        assert share(plan, rank, seed, epoch, True, first) == share(plan, rank, seed, epoch, True)[first:]
    others = data.draw(st.sampled_from([r for r in range(1, batch + 1) if batch % r == 0]))
    tails = [share((count, others, batch), rank, seed, epoch, True, first) for rank in range(others)]
    seen = [place.pair for step in zip(*tails, strict=True) for b in step for place in b]
    assert seen == order(count, seed, epoch, True)[first * batch : count // batch * batch].tolist()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(30, 300))
def test_order_is_a_pure_function_of_seed_and_epoch(seed: int, epoch: int, count: int) -> None:
    shuffled = order(count, seed, epoch, True).tolist()
    torch.rand(1), np.random.rand(), random.random()
    assert order(count, seed, epoch, True).tolist() == shuffled
    assert shuffled != order(count, seed, epoch + 1, True).tolist()
    assert shuffled != order(count, seed + 1, epoch, True).tolist()
    assert shuffled != list(range(count))
    assert order(count, seed, epoch, False).tolist() == order(count, seed + 1, epoch + 1, False).tolist()
    assert order(count, seed, epoch, False).tolist() == list(range(count))


def test_the_order_of_a_seed_stays_what_it_was() -> None:
    # A run that was started with an older release must continue in the same order.
    assert order(10, 0, 0, True).tolist() == [6, 5, 1, 7, 3, 0, 4, 8, 2, 9]
    assert order(10, 7, 3, True).tolist() == [1, 0, 4, 9, 3, 7, 8, 2, 5, 6]


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 200))
def test_check_batch_lets_pass_what_works_and_proposes_what_would(batch: int, ranks: int, count: int) -> None:
    if batch % ranks == 0 and batch <= count:
        check_batch(batch, ranks, count)
        return
    with pytest.raises(UserError, match=f"^data.batch_size = {batch}: ") as e:
        check_batch(batch, ranks, count)
    proposals = [int(w) for w in str(e.value).split("use ")[1].replace(" or less", "").split(" or ")]
    assert proposals
    for proposed in proposals:
        assert proposed <= count if batch % ranks == 0 else proposed % ranks == 0 and abs(proposed - batch) < ranks


def test_check_batch_sentences() -> None:
    with pytest.raises(UserError, match=r"does not divide by 3 ranks; use 9 or 6$"):
        check_batch(8, 3, 100)
    with pytest.raises(UserError, match=r"does not divide by 4 ranks; use 4$"):
        check_batch(2, 4, 100)
    with pytest.raises(UserError, match=r"an epoch has only 7 pairs; use 7 or less$"):
        check_batch(8, 2, 7)


# Weights


def weights_of(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


WEIGHTS = st.lists(
    st.one_of(st.integers(1, 5).map(float), st.floats(0.01, 6.0), st.sampled_from([0.1, 0.5, 1 / 3, 1.5])),
    min_size=1,
    max_size=60,
)


@given(WEIGHTS, st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_each_epoch_has_as_many_places_and_rounds_each_weight_down_or_up(
    values: list[float], seed: int, epoch: int
) -> None:
    weights, places = weights_of(*values), length(len(values), weights_of(*values))
    assert sum(values) - 1 < places <= sum(values) + 1e-6
    times = copies(weights, seed, epoch)
    assert times.sum() == places
    assert np.all((times == np.floor(weights)) | (times == np.floor(weights) + 1))
    assert np.array_equal(times, copies(weights, seed, epoch))
    whole = weights == np.floor(weights)
    assert np.array_equal(times[whole], weights[whole])


def test_over_epochs_each_pair_stands_there_as_often_as_its_weight_says() -> None:
    weights = weights_of(0.25, 1.5, 3, 0.5, 2.75, 0.1, 0.9)  # the fractions are 3 together
    times = np.mean([copies(weights, 1, epoch) for epoch in range(4000)], axis=0)
    assert times == pytest.approx(weights, abs=0.03)  # four standard errors of a fraction of 1/2


@settings(deadline=None)
@given(WEIGHTS, st.integers(1, 4), st.integers(0, 2**32), st.integers(0, 100), st.booleans(), st.data())
def test_ranks_share_a_weighted_epoch_exactly_and_go_on_in_it(
    values: list[float], ranks: int, seed: int, epoch: int, shuffle: bool, data: st.DataObject
) -> None:
    values += [1.0] * ranks
    weights, count = weights_of(*values), len(values)
    places = length(count, weights)
    batch = ranks * data.draw(st.integers(1, places // ranks))
    steps = places // batch
    plan, first = (count, ranks, batch), data.draw(st.integers(0, steps))
    (whole,) = share((count, 1, places), 0, seed, epoch, shuffle, weights=weights)
    times = copies(weights, seed, epoch)
    assert sorted(whole) == [Place(epoch, pair, copy) for pair in range(count) for copy in range(times[pair])]
    shares = [share(plan, rank, seed, epoch, shuffle, first, weights) for rank in range(ranks)]
    assert [len(s) for s in shares] == [steps - first] * ranks
    seen = [place for step in zip(*shares, strict=True) for b in step for place in b]
    assert seen == whole[first * batch : steps * batch]


def test_weights_of_one_change_nothing() -> None:
    plain = share((50, 1, 8), 0, 3, 2, True)
    assert share((50, 1, 8), 0, 3, 2, True, weights=np.ones(50)) == plain


def test_the_weighted_order_of_a_seed_stays_what_it_was() -> None:
    places = share((5, 1, 8), 0, 3, 1, True, weights=weights_of(3, 0.5, 1.5, 2, 1))
    pairs_and_copies = [(0, 1), (3, 0), (2, 1), (4, 0), (0, 0), (2, 0), (0, 2), (3, 1)]
    assert places == [[Place(1, pair, copy) for pair, copy in pairs_and_copies]]


def test_only_copies_have_another_stream_of_random_numbers() -> None:
    assert [Place(4, 7, copy).stream("face") for copy in (0, 1, 2)] == ["face", "face/1", "face/2"]
