"""Networks compute the same with jit, without it, and on four devices with an image each."""

import functools

import numpy as np
from absl.testing import parameterized

from segjax import models
from tests.models.mask_rcnn_tiny import SIDE, tiny_model, variables_of
from tests.models.subsampling import Subsampling
from tests.variables import random_variables
from tests.variants import EXAMPLES, VARIANTS, VariantsCase

MODELS = {
    "unet": models.UNet(3, features=2, depth=1, padding="SAME", norm="group"),
    "deeplab": models.DeepLabV3Plus(
        3, backbone=Subsampling(), aspp_features=4, decoder_features=4, low_level_features=2
    ),
    "mask_rcnn": tiny_model("c5", backbone=Subsampling()),
}


@functools.cache
def images():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, SIDE, SIDE, 3)).astype(np.float32) for _ in range(EXAMPLES)]


class ForwardPassTest(VariantsCase):
    @VARIANTS
    @parameterized.named_parameters(MODELS.items())
    def test_same_result(self, model):
        of_mask_rcnn = isinstance(model, models.MaskRCNN)
        variables = variables_of(model) if of_mask_rcnn else random_variables(model, images()[0])
        self.check(functools.partial(model.apply, variables), images(), tolerance=1e-4)
