"""Hints name the nearest known name, and nothing far away."""

from segjax.messages.hints import did_you_mean, nearest


def test_the_nearest_name_is_found_and_a_far_one_is_not():
    assert nearest("resnet5", ["vgg16", "resnet50"]) == "resnet50"
    assert nearest("zebra", ["vgg16", "resnet50"]) is None
    assert did_you_mean("nrm", {"norm": 1}) == "; did you mean 'norm'?"
    assert did_you_mean("zebra", ["norm"]) == ""
