"""The process behind one side of a comparison; `measure.Worker` starts it.

The worker reads lines of JSON and answers each with one line. The first line names a function and
its arguments; the worker builds the call and runs it once. Each further line runs the call again or
names another function. {"finish": true} asks for peak memory, the note and the facts.

A function may return an object with a "note" and "facts" instead of a plain call. A call may return
its own seconds, as a float, where only a part of its work counts.
"""

import importlib
import json
import os
import platform
import resource
import sys
import time
from importlib import metadata

PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "faster-coco-eval"),
    *("torch", "torchvision", "segmentation-models-pytorch", "pycocotools", "pydensecrf2"),
)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main():
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries' prints must not mix with answers
    call = None
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if request.get("finish"):
            answer = {key: getattr(call, key) for key in ("note", "facts") if hasattr(call, key)}
            answer["peak_bytes"] = _peak_bytes()
        else:
            if "function" in request:
                call = None  # frees its memory before the next is built
                call = _build(request)
            start = time.perf_counter()
            counted = call()
            spent = time.perf_counter() - start
            answer = {"seconds": counted if isinstance(counted, float) else spent}
        print(json.dumps(answer), file=answers, flush=True)


def _build(request):
    if request["threads"] is not None:  # before JAX counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
    module, function = request["function"].split(":")
    return getattr(importlib.import_module(module), function)(**request["arguments"])


def _peak_bytes() -> int:
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if jax is not None and jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
