"""The data relume ships."""

from importlib.resources import files

import numpy as np
from sklearn.datasets import load_digits


def test_digits_are_those_of_scikit_learn():
    """The shipped digits equal scikit-learn's, image by image and label by label."""
    expected_images, expected_labels = load_digits(return_X_y=True)
    with (files("relume") / "data" / "digits.npz").open("rb") as file, np.load(file) as shipped:
        images, labels = shipped["images"], shipped["labels"]

    assert images.dtype == labels.dtype == np.uint8
    assert images.shape == (1797, 64)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(labels, expected_labels)
