"""pydensecrf's side of the operator benchmark; its interpreter does not need JAX."""

import numpy as np
from outputs import Operator


def dense_crf(scene: str, config: dict, result: str):
    with np.load(scene) as arrays:
        image, probabilities = arrays["image"], arrays["probabilities"]
    return Operator(
        lambda: marginals(probabilities, image, **config),
        result,
        lambda marginals: {"marginals": marginals},
    )


def marginals(
    probabilities,
    image,
    *,
    num_iterations,
    appearance_weight,
    position_sigma,
    color_sigma,
    smoothness_weight,
    smoothness_sigma,
    normalization,
):
    """Runs pydensecrf with the parameters of `segjax.ops.dense_crf.CrfConfig`."""
    from pydensecrf import densecrf

    height, width, classes = probabilities.shape
    normalization = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "per_pixel": densecrf.NORMALIZE_AFTER,
        "none": densecrf.NO_NORMALIZATION,
    }[normalization]
    model = densecrf.DenseCRF2D(width, height, classes)
    unary = -np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).reshape(-1, classes).T
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(
        sxy=smoothness_sigma, compat=smoothness_weight, normalization=normalization
    )
    model.addPairwiseBilateral(
        sxy=position_sigma,
        srgb=color_sigma,
        rgbim=np.ascontiguousarray(image),
        compat=appearance_weight,
        normalization=normalization,
    )
    found = np.array(model.inference(num_iterations))
    return found.T.reshape(height, width, classes)
