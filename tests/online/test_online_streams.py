from collections.abc import Callable

import numpy as np
import pytest

from dynopt_ray.errors import DataError, UnknownNameError
from dynopt_ray.online import ArrayStream, Drift, RiverStream

X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10) % 3


def collected(stream: ArrayStream) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = zip(*stream, strict=True)
    return np.stack(xs), np.stack(ys)


def test_every_row_comes_once_per_pass_with_its_own_label() -> None:
    x, y = collected(ArrayStream(X, Y, num_events=25, seed=1))
    assert len(x) == 25
    rows = (x[:, 0] / 4).astype(int)
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:20])
    assert np.array_equal(y, Y[rows])


def test_a_stream_is_the_same_each_time() -> None:
    stream = ArrayStream(X, Y, num_events=30, drifts=[Drift(at=5, width=20)], seed=1)
    first, second = collected(stream), collected(stream)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert len(stream) == 30
    other = collected(ArrayStream(X, Y, num_events=30, seed=2))
    assert not np.array_equal(first[0], other[0])


def test_labels_are_permuted_from_the_event_on() -> None:
    plain = collected(ArrayStream(X, Y, num_events=30))
    x, y = collected(ArrayStream(X, Y, num_events=30, drifts=[Drift(at=12, seed=4)]))
    assert np.array_equal(x, plain[0])
    assert np.array_equal(y[:12], plain[1][:12])
    assert (y[12:] != plain[1][12:]).all()
    assert len(set(zip(plain[1][12:], y[12:], strict=True))) == 3


def test_features_are_permuted_from_the_event_on() -> None:
    plain = collected(ArrayStream(X, Y, num_events=30))
    x, y = collected(ArrayStream(X, Y, num_events=30, drifts=[Drift(at=12, kind="features")]))
    assert np.array_equal(y, plain[1])
    assert np.array_equal(x[:12], plain[0][:12])
    assert (x[12:] != plain[0][12:]).all()
    assert np.array_equal(np.sort(x), np.sort(plain[0]))


@pytest.mark.parametrize("shape", [(10, 4), (10, 2, 2), (10, 1, 2, 2)])
def test_images_are_turned_by_a_quarter(shape: tuple[int, ...]) -> None:
    x, _ = collected(
        ArrayStream(X.reshape(shape), Y, num_events=3, drifts=[Drift(at=0, kind="rotation")])
    )
    plain, _ = collected(ArrayStream(X, Y, num_events=3))
    for turned, image in zip(x, plain, strict=True):
        assert np.array_equal(turned.reshape(2, 2), np.rot90(image.reshape(2, 2)))
        assert turned.shape == shape[1:]


def test_a_gradual_drift_takes_over_event_by_event() -> None:
    plain = collected(ArrayStream(X, Y, num_events=3000))[1]
    y = collected(ArrayStream(X, Y, num_events=3000, drifts=[Drift(at=1000, width=1000)]))[1]
    changed = y != plain
    assert not changed[:1000].any()
    assert changed[2000:].all()
    assert 0.15 < changed[1000:1500].mean() < 0.35
    assert 0.65 < changed[1500:2000].mean() < 0.85


def test_drifts_add_up() -> None:
    drifts = [Drift(at=0, kind="rotation")] * 4
    x, _ = collected(ArrayStream(X, Y, drifts=drifts))
    assert np.array_equal(x, collected(ArrayStream(X, Y))[0])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ArrayStream(X, Y[:5]), "x has 10 rows and y 5"),
        (lambda: ArrayStream(X[:0], Y[:0]), "x has 0 rows"),
        (lambda: ArrayStream(X, Y / 2, drifts=[Drift(at=1)]), "needs classes 0, 1"),
        (lambda: ArrayStream(X, Y * 0, drifts=[Drift(at=1)]), "a permutation of 1 changes nothing"),
        (
            lambda: ArrayStream(X[:, :3], Y, drifts=[Drift(at=1, kind="rotation")]),
            r"square images; events have shape \(3,\)",
        ),
    ],
)
def test_drifts_that_the_data_cannot_have_are_refused(
    make: Callable[[], ArrayStream], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        make()


def test_a_kind_of_drift_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rotation'"):
        Drift(at=0, kind="rotations")  # type: ignore[arg-type]


def test_a_data_set_of_rivers_comes_as_arrays() -> None:
    from river.datasets import Phishing

    stream = RiverStream("phishing")
    pairs, originals = list(stream), list(Phishing())
    assert len(pairs) == len(originals)
    for (x, y), (features, target) in zip(pairs, originals, strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, list(features.values()))
        assert stream.classes[int(y)] == target
    assert len(stream.classes) == 2


def test_generators_of_rivers_take_their_settings() -> None:
    a, b = (list(RiverStream("SEA", num_events=50, seed=1, variant=2)) for _ in range(2))
    assert len(a) == 50
    assert all(np.array_equal(p[0], q[0]) for p, q in zip(a, b, strict=True))


def test_numbers_stay_numbers() -> None:
    y = [float(y) for _, y in RiverStream("ChickWeights")]
    assert y[:2] == [42, 40]


def test_an_unknown_data_set_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'Phishing'"):
        RiverStream("Fishing")
