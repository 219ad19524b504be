"""Times `segjax.ops.convolution` beside XLA's own convolution, forward and with both gradients.

    PYTHONPATH=. python experiments/benchmarks/atrous_convolution.py

The two run in turn, after warm-up; medians in milliseconds, and their ratio.
"""

import functools
import platform
import statistics
import time

import jax
from jax import lax

from segjax.ops import convolution

ROUNDS = 7
# name: batch, side, channels in and out, rate, groups
SHAPES = {
    "ASPP, rate 6": (2, 33, 512, 256, 6, 1),
    "ASPP, rate 12": (2, 33, 512, 256, 12, 1),
    "ASPP, rate 18": (2, 33, 512, 256, 18, 1),
    "ASPP at stride 8, rate 36": (1, 65, 512, 256, 36, 1),
    "v1's fc6, rate 12": (1, 41, 512, 1024, 12, 1),
    "ResNet stage 4, rate 2": (2, 33, 512, 512, 2, 1),
    "MobileNetV2, depthwise": (4, 33, 384, 384, 1, 384),
    "Xception, depthwise, rate 2": (1, 65, 728, 728, 2, 728),
}


def plain(inputs, kernel, *, rate, groups):
    padding = [(rate, rate)] * 2
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (1, 1),
        padding,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def with_gradients(form, inputs, kernel):
    output, pull_back = jax.vjp(form, inputs, kernel)
    return output, pull_back(output)


def milliseconds(function, *arguments):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return 1000 * (time.perf_counter() - start)


def main():
    device = jax.devices()[0]
    print(f"{device.device_kind}, {platform.processor()}, jax {jax.__version__}")
    print(f"{'':28}{'forward':>30}{'with gradients':>30}")
    print(f"{'':28}" + 2 * f"{'XLA':>10}{'ours':>10}{'ratio':>10}")
    for name, (batch, side, channels, features, rate, groups) in SHAPES.items():
        keys = jax.random.split(jax.random.key(0))
        inputs = jax.random.normal(keys[0], (batch, side, side, channels))
        kernel = jax.random.normal(keys[1], (3, 3, channels // groups, features)) * 0.01
        forms = [functools.partial(f, rate=rate, groups=groups) for f in (plain, convolution)]
        line = f"{name:28}"
        for wrap in (lambda f: f, lambda f: functools.partial(with_gradients, f)):
            functions = [jax.jit(wrap(form)) for form in forms]
            times = [[], []]
            for number in range(ROUNDS + 1):
                for function, of in zip(functions, times, strict=True):
                    spent = milliseconds(function, inputs, kernel)
                    if number:  # the first compiles
                        of.append(spent)
            xla, ours = map(statistics.median, times)
            line += f"{xla:10.1f}{ours:10.1f}{ours / xla:10.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
