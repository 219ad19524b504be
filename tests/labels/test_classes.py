"""What the names of classes say."""

import pytest

from segjax.labels import background_class, check_classes


def test_the_background_is_found_by_its_name():
    assert background_class(("sky", "road")) is None
    assert background_class(("pet", "Background")) == 1
    assert background_class(("_background_", "cat")) == 0
    assert background_class(("membrane", "cell"), "membrane") == 0
    with pytest.raises(ValueError, match="background='membrene' is none of the classes membrane"):
        background_class(("membrane", "cell"), "membrene")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("fish", "boat", "fish"), "two classes are named 'fish'"),
        (("background", "fish", "Background"), "'background' and 'Background' both name the back"),
        (("fish", " "), "a class is named ' '; expected a text"),
        ((0, 1), "a class is named 0; expected a text"),
    ],
)
def test_classes_that_names_do_not_tell_apart_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        check_classes(classes)


def test_names_that_differ_in_capitals_alone_are_two_classes():
    check_classes(("background", "Fish", "fish"))
