"""ONNX files find what `predict` finds; without their packages, one line says what to install."""

import dataclasses
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.cli import main
from segjax.coco import run_lengths as rle
from segjax.export.model import image_function
from segjax.export.onnx_file import check_packages, cleaned, to_onnx
from segjax.export.onnx_precision import fitted, with_bfloat16, with_int8
from segjax.export.portable import portable
from segjax.ops.nms import nms
from segjax.ops.platforms import for_every_platform
from tests.export.test_stablehlo import deeplab, detector, photos, run, unet

__all__ = ["run"]  # a fixture

needs_jax2onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("jax2onnx") and importlib.util.find_spec("onnxruntime")),
    reason="jax2onnx and onnxruntime are not installed (the extra segjax[onnx])",
)


def session(proto):
    import onnxruntime

    return onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def found_by(proto, images) -> dict:
    runtime = session(proto)
    names = [output.name for output in runtime.get_outputs()]
    return dict(zip(names, runtime.run(names, {"images": images}), strict=True))


def operators(program) -> set[str]:
    names = set()
    for equation in program.eqns:
        names.add(equation.primitive.name)
        for option in equation.params.values():
            for each in option if isinstance(option, tuple) else [option]:
                names |= operators(each) if hasattr(each, "eqns") else set()
    return names


def shapes_of(*arrays):
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]


def suppression():
    """A function of boxes and scores that takes two tiles, and such boxes and scores."""
    boxes = jnp.asarray(np.random.default_rng(0).uniform(0, 50, (2, 1500, 4)).astype(np.float32))
    boxes = boxes.at[..., 2:].add(boxes[..., :2])
    scores = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (2, 1500)).astype(np.float32))

    def select(boxes, scores):
        one = jax.vmap(lambda *x: nms(*x, iou_threshold=0.5, max_outputs=100))
        return one(boxes, scores)

    return select, (boxes, scores)


def test_a_portable_program_has_no_choice_of_platform_and_computes_the_same():
    select, (boxes, scores) = suppression()
    with for_every_platform():
        assert "platform_index" in operators(jax.make_jaxpr(select)(boxes, scores))
    program = portable(select, *shapes_of(boxes, scores))
    names = operators(program)
    assert "while" in names
    assert not names & {"platform_index", "cond", "jit", "pjit"}
    run_it = jax.extend.core.jaxpr_as_fun(program)
    for got, wanted in zip(run_it(boxes, scores), select(boxes, scores), strict=True):
        np.testing.assert_array_equal(got, wanted)


@needs_jax2onnx
@pytest.mark.slow
def test_suppression_of_many_boxes_selects_the_same_in_onnx():
    import jax2onnx

    select, arrays = suppression()
    program = portable(select, *shapes_of(*arrays))
    proto = jax2onnx.to_onnx(
        jax.extend.core.jaxpr_as_fun(program),
        inputs=shapes_of(*arrays),
        input_names=["boxes", "scores"],
    )
    inputs = dict(zip(["boxes", "scores"], map(np.asarray, arrays), strict=True))
    found = session(cleaned(proto)).run(None, inputs)
    for got, wanted in zip(found, select(*arrays), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_known_branches_and_short_loops_become_straight_programs():
    def function(x):
        x = lax.cond(jnp.asarray(3) > 2, lambda x: x + 1, lambda x: x * 2, x)
        x = lax.fori_loop(jnp.asarray(0), jnp.asarray(4), lambda i, x: x * i + 1, x)
        return lax.fori_loop(jnp.asarray(0), jnp.asarray(100), lambda i, x: x - 1, x)

    program = portable(function, jax.ShapeDtypeStruct((), jnp.int32))
    names = [equation.primitive.name for equation in program.eqns]
    assert "cond" not in names
    assert names.count("while") == 1  # the long one
    assert names.count("mul") == 4
    x = jnp.asarray(5)
    assert jax.extend.core.jaxpr_as_fun(program)(x)[0] == function(x)


@needs_jax2onnx
@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, deeplab])
def test_labels_and_probabilities_of_three_sizes_are_those_of_predict(make):
    model, seen = make(), set()
    for size in [(30, 41), (36, 36), (70, 33)]:
        images = photos(2, *size)
        found = found_by(to_onnx(image_function(model, size=size), batch=2), images)
        for number, image in enumerate(images):
            expected = model.predict(image)
            seen |= {*np.unique(expected["labels"]).tolist()}
            np.testing.assert_array_equal(found["labels"][number], expected["labels"])
            np.testing.assert_allclose(
                found["probabilities"][number], expected["probabilities"], atol=1e-5
            )
    assert found["labels"].dtype == np.uint8
    assert len(seen) > 1


@needs_jax2onnx
@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 60), (64, 64), (33, 47)], ids=str)
def test_detections_of_three_sizes_are_those_of_predict(size):
    model, images = detector(), photos(2, *size)
    found = found_by(to_onnx(image_function(model, size=size), batch=2), images)
    for number, image in enumerate(images):
        expected = model.predict(image)
        valid = found["valid"][number]
        assert valid.sum() == len(expected["scores"]) > 0
        for name, tolerance in (("boxes", 1e-3), ("scores", 1e-5), ("classes", 0)):
            np.testing.assert_allclose(found[name][number][valid], expected[name], atol=tolerance)
        masks = np.stack([rle.decode(mask) for mask in expected["masks"]])
        assert np.mean(found["masks"][number][valid] != masks) < 1e-3


@needs_jax2onnx
def test_lower_precisions_make_smaller_files_with_nearly_the_same_probabilities():
    model, images = deeplab(), photos(2, 50, 41)
    whole = to_onnx(image_function(model, size=(50, 41)), batch=2)
    expected = found_by(whole, images)["probabilities"]
    for proto, tolerance in ((with_bfloat16(whole), 0.03), (with_int8(whole, [images]), 0.15)):
        assert proto.ByteSize() < 0.75 * whole.ByteSize()
        difference = abs(found_by(proto, images)["probabilities"] - expected).max()
        assert 1e-4 < difference < tolerance


@needs_jax2onnx
@pytest.mark.slow
def test_windows_in_a_loop_are_not_quantised():
    model = unet()
    size = (20 * 6, 20 * 6)  # 36 windows
    whole = to_onnx(image_function(model, size=size), batch=1)
    images = photos(1, *size)
    found = found_by(whole, images)
    np.testing.assert_array_equal(found["labels"][0], model.predict(images[0])["labels"])
    with pytest.raises(ValueError, match="at most 32 windows, or --precision bfloat16"):
        with_int8(whole, [images])


def test_calibration_images_are_cropped_or_mirrored():
    image = np.arange(5 * 4 * 1, dtype=np.uint8).reshape(5, 4, 1)
    np.testing.assert_array_equal(fitted(image, (3, 4)), image[1:4])
    np.testing.assert_array_equal(
        fitted(image, (5, 7))[0, :, 0], image[0, [0, 0, 1, 2, 3, 3, 2], 0]
    )


@needs_jax2onnx
def test_the_command_writes_a_file_with_its_facts(run, tmp_path, capsys):
    import onnx

    import segjax
    from tests.training import tiny

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    images = np.stack([tiny.Squares(2)[index]["image"][:11] for index in range(2)])
    for number, image in enumerate(images):
        np.save(pictures / f"{number}.npy", image)
    height, width = map(str, images.shape[1:3])
    output = tmp_path / "model.onnx"
    arguments = ["--output", str(output), "--size", height, width, "--batch", "2"]
    main(["export", str(run), *arguments])
    assert "float32, 2 at a time; ONNX Runtime" in capsys.readouterr().out
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["format"] == "onnx"
    assert facts["inputs"]["images"]["shape"] == [2, int(height), int(width), 1]
    assert facts["versions"]["jax2onnx"] == check_packages()["jax2onnx"]
    proto = onnx.load(output)
    kept = {each.key: each.value for each in proto.metadata_props}
    assert json.loads(kept["classes"]) == facts["classes"] == ["ground", "square"]
    assert kept["command"] == facts["command"]
    trained = segjax.load_run(run)
    labels = found_by(proto, images)["labels"]
    for found, image in zip(labels, images, strict=True):
        np.testing.assert_array_equal(found, trained.predict(image)["labels"])
    for precision in ("bfloat16", "int8"):
        extra = ["--calibration", str(pictures)] if precision == "int8" else []
        main(["export", str(run), *arguments, "--precision", precision, *extra, "--overwrite"])
        again = found_by(onnx.load(output), images)["labels"]
        assert np.mean(again == labels) > 0.9
        assert json.loads((tmp_path / "model.json").read_text())["precision"] == precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.onnx"], "an ONNX file takes images of one size; give --size HEIGHT WIDTH, or a"),
        (["a.onnx", "--size", "8", "8", "--batch", "0"], "--batch 0: expected at least 1"),
        (["a.onnx", "--size", "8", "8", "--precision", "int8"], "needs --calibration DIR"),
        (["a.onnx", "--size", "8", "8", "--calibration", "d"], "is for --precision int8"),
        (["a.stablehlo", "--batch", "2"], "--batch is for ONNX; a.stablehlo is StableHLO"),
        (["a.stablehlo", "--precision", "int8"], "--precision is for ONNX"),
    ],
)
def test_flags_that_do_not_fit_the_format_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["export", "no_run", "--output", *arguments])
    assert message in capsys.readouterr().err


def test_without_its_packages_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(SystemExit):
        main(["export", "no_run", "--output", "a.onnx", "--size", "8", "8"])
    message = capsys.readouterr().err
    assert message.startswith("error: ONNX files need the packages jax2onnx, onnx, onnxruntime (")
    assert "pip install 'segjax[onnx]' in an environment of its own" in message
    assert message.count("\n") == 1


@needs_jax2onnx
def test_what_jax2onnx_cannot_convert_is_refused_in_one_line():
    function = image_function(unet(), size=(30, 41))
    odd = dataclasses.replace(function, call=lambda x: {"labels": lax.rng_uniform(0.0, 1.0, (3,))})
    with pytest.raises(
        ValueError, match=r"cannot convert this model \(.*\); tested: jax2onnx 0.17"
    ):
        to_onnx(odd, batch=1)
    with pytest.raises(ValueError, match="give --size HEIGHT WIDTH"):
        to_onnx(dataclasses.replace(function, size=None), batch=1)
