"""What the accelerator benchmark reads from a compiled program's text."""

import pytest

from experiments.benchmarks.compiled_costs import costs, place_of, size_in_bytes

PROGRAM = """HloModule step

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %add.1 = f32[8]{0} add(%a, %b), metadata={op_name="jit(f)/nms/while/body/add"}, \
backend_config={"estimated_cycles":"100"}
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %less = pred[] compare(%a, %b), direction=LT, backend_config={"estimated_cycles":"10"}
}

%inner (p: f32[4]) -> f32[4] {
  %sorted = f32[4]{0} sort(%p), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main.1 (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%condition.1, body=%body.1, \
metadata={op_name="jit(f)/nms/while"}@
  %sum = bf16[16,4]{1,0} all-reduce(%x), to_apply=%add, \
metadata={op_name="jit(f)/transpose(jvp(UNet))/block1/sum"}, backend_config={"estimated_cycles":"5"}
  %called = f32[4]{0} call(%x), to_apply=%inner
}
"""


@pytest.mark.parametrize(
    ("known", "turns", "number", "origin"),
    [
        (', backend_config={"known_trip_count":{"n":"7"}}', {"nms": 3}, 7, "known"),
        ("", {"match": 9, "nms/while": 3}, 3, "assumed"),
        ("", {"match": 9}, 1, "unknown"),
    ],
)
def test_a_loop_counts_as_often_as_it_turns(known, turns, number, origin):
    found = costs(PROGRAM.replace("@", known), turns, clock=1e6)
    expected = [{"source": "jit(f)/nms/while", "turns": number, "from": origin, "entered": 1}]
    assert found["loops"] == expected
    cycles = 110 * number + 5 + 1000
    assert found["estimated_milliseconds"]["all"] == pytest.approx(cycles / 1e3)
    assert found["operations"] == {"sort": 1}
    assert found["collectives"] == {"all-reduce": {"number": 1, "bytes": 16 * 4 * 2}}


def test_without_a_clock_there_is_no_estimate():
    assert "estimated_milliseconds" not in costs(PROGRAM.replace("@", ""), {}, clock=None)


def test_places_are_modules_and_sizes_are_bytes():
    assert place_of("jit(f)/shard_map/jvp(UNet)/block12/conv") == "block#/conv"
    assert place_of("jit(f)/transpose(jvp(UNet))/block12/conv") == "gradient: block#/conv"
    assert size_in_bytes("(f32[2,3]{1,0}, pred[5], s32[], bf16[4])") == 24 + 5 + 4 + 8
