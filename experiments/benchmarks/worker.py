"""The process behind one side of a comparison; started by `measure.Worker`, not by hand.

Reads lines of JSON and answers each with one. The first names the function and its arguments: it is
built and called once. Each further one calls it again, or names another function to go on with;
{"finish": true} asks for peak memory and the note.
A function may return an object with a "note" and "facts" instead of a plain call. A call may return
seconds, as a float, where not all that it did is to count.
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
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    call = None
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if request.get("finish"):
            answer = {key: getattr(call, key) for key in ("note", "facts") if hasattr(call, key)}
            answer["peak_bytes"] = _peak_bytes()
        else:
            if "function" in request:
                call = None  # what it holds goes before the next comes
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
