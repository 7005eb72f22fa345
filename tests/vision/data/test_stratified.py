"""Digits without scikit-learn's import are scikit-learn's digits, split as it splits them."""

import numpy as np
import pytest

from vision.data.published import digits
from vision.data.stratified import stratified_split

pytestmark = pytest.mark.slow  # importing scikit-learn takes two seconds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "classes", "num_test"), [(1797, 10, 360), (200, 7, 31), (60, 3, 3)])
def test_number_for_number(n, classes, num_test, seed):
    from sklearn.model_selection import train_test_split

    draw = np.random.default_rng(seed)
    targets = np.concatenate([np.repeat(np.arange(classes), 2), draw.integers(0, classes, n)])
    theirs = train_test_split(
        np.arange(len(targets)), test_size=num_test, stratify=targets, random_state=seed
    )
    for own, their in zip(stratified_split(targets, num_test, seed), theirs, strict=True):
        np.testing.assert_array_equal(own, their)


def test_digits():
    from sklearn.datasets import load_digits

    bunch, own = load_digits(), digits()
    np.testing.assert_array_equal(own.targets, bunch.target)
    np.testing.assert_array_equal(own.pixels[:, 0], (bunch.images * (255 / 16)).round())
    assert own.pixels.dtype.itemsize == 1
