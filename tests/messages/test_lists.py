"""Lists of names are cut to a few, and the others are counted."""

from segjax.messages.lists import few


def test_the_first_names_are_shown_and_the_others_counted():
    assert few(["a"]) == "a"
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert few(["a", "b"], most=1) == "a and 1 more"
