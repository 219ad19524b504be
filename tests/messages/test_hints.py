"""Hints name the nearest known name, and nothing far away."""

from segjax.messages.hints import did_you_mean, nearest


def test_the_nearest_name_is_found_and_a_far_one_is_not():
    assert nearest("resnet5", ["vgg16", "resnet50"]) == "resnet50"
    sizes = ["resnet101", "resnet50", "resnet34", "vgg16"]
    assert nearest("resnet18", sizes) == "resnet34"
    assert nearest("resnet10", sizes) == "resnet101"
    assert nearest("smp/unet_resnet18", [f"smp/unet_{each}" for each in sizes]).endswith("t34")
    assert nearest("zebra", ["vgg16", "resnet50"]) is None
    assert did_you_mean("nrm", {"norm": 1}) == "; did you mean 'norm'?"
    assert did_you_mean("zebra", ["norm"]) == ""
