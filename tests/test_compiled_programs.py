"""What the benchmarks read in compiled programs: instructions, loops, bytes, FLOP and estimates."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not in the package

from benchmarks import loop_lengths
from benchmarks.gpu_costs import BANDWIDTH, LAUNCH, GpuProgram
from benchmarks.hlo_program import part_of, total
from benchmarks.hlo_text import parse
from benchmarks.tpu_costs import CHIPS, TpuProgram, convolution_operations

PROGRAM = """HloModule jit_run, is_scheduled=true

FileNames
1 "/somewhere/mrcnn_jax/ops/nms.py"
2 "/somewhere/site-packages/jax/loops.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=77 end_line=77 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=10 end_line=10 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%fused_rows (table: bf16[1000,256], index: s32[512]) -> bf16[512,256] {
  %table = bf16[1000,256]{1,0:T(8,128)(2,1)} parameter(0)
  %index = s32[512]{0:T(512)S(1)} parameter(1)
  ROOT %rows = bf16[512,256]{1,0:T(8,128)(2,1)} gather(%table, %index), offset_dims={1}, slice_sizes={1,256}
}

%condition (state: (s32[], f32[512])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[512]{0:T(512)}) parameter(0)
  ROOT %go = pred[]{:T(512)} constant(true)
}

%body (state.1: (s32[], f32[512])) -> (s32[], f32[512]) {
  %state.1 = (s32[]{:T(128)}, f32[512]{0:T(512)}) parameter(0)
  %values = f32[512]{0:T(512)} get-tuple-element(%state.1), index=1
  %next = f32[512]{0:T(512)} negate(%values), backend_config={"window_config":{"estimated_cycles":"1500"}}
  %count = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %result = (s32[]{:T(128)}, f32[512]{0:T(512)}) tuple(%count, %next)
}

ENTRY %main (a: bf16[1000,256], b: s32[512], c: (s32[], f32[512])) -> (s32[], f32[512]) {
  %a = bf16[1000,256]{1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[512]{0:T(512)S(1)} parameter(1)
  %c = (s32[]{:T(128)}, f32[512]{0:T(512)}) parameter(2)
  %gather = bf16[512,256]{1,0:T(8,128)(2,1)} fusion(%a, %b), kind=kCustom, calls=%fused_rows, \
metadata={op_name="jit(run)/roi_align/gather"}
  %start = (bf16[512,256]{1,0:S(1)}, bf16[512,256]{1,0}, u32[]{:S(2)}) copy-start(%gather)
  %done = bf16[512,256]{1,0:S(1)} copy-done(%start)
  ROOT %while = (s32[]{:T(128)}, f32[512]{0:T(512)}) while(%c), condition=%condition, body=%body, \
metadata={op_name="jit(run)/proposals/vmap()/while" stack_frame_id=2}
}
"""


def test_estimates_of_a_tpu_program():
    asked = []

    def turns(*loop):
        asked.append(loop)
        return 2.5

    program = TpuProgram(PROGRAM, CHIPS["v5e"], turns)
    assert asked == [("mrcnn_jax/ops/nms.py:77", "proposals/vmap()/while", "(s32[]{:T(128)}, f32[512]{0:T(512)})")]
    gather, copy, negate = program.kernels
    assert (gather.kind, gather.scope) == ("gather, our estimate", "roi_align/gather")
    assert gather.bytes == 2 * 512 * 256 * 2  # the rows that are read, and written; the index is not in HBM
    assert gather.seconds == pytest.approx(512 * 4.3e-9)
    assert (copy.kind, copy.seconds, copy.bytes) == ("copy, asynchronous", 0.0, 2 * 512 * 256 * 2)
    assert (negate.kind, negate.times) == ("negate", 2.5)
    assert negate.seconds == pytest.approx(1e-6)  # 1500 cycles of 1.5 GHz
    assert total(program.kernels, "seconds") == pytest.approx(512 * 4.3e-9 + 2.5e-6)


def test_lower_bounds_of_a_gpu_program():
    known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    program = GpuProgram(known, lambda *_: pytest.fail("the trip count is known"))
    (loop,) = program.loops
    assert (loop.trip_count, loop.turns) == (7, 7)
    negate = program.kernels[-1]
    assert (negate.bytes, negate.times, negate.seconds) == (2 * 512 * 4, 7, LAUNCH)
    assert program.kernels[0].bytes / BANDWIDTH < LAUNCH


def convolution(window: str, image: str, kernel: str, output: str) -> float:
    text = f"""
%part (x: f32{image}, w: f32{kernel}) -> f32{output} {{
  %x = f32{image}{{3,2,1,0}} parameter(0)
  %w = f32{kernel}{{3,2,1,0}} parameter(1)
  ROOT %y = f32{output}{{3,2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels=b01f_01io->b01f, metadata={{}}
}}
"""
    (computation,) = parse(text)[0].values()
    return convolution_operations(computation, computation.root)


def test_operations_of_convolutions_leave_out_padding():
    # Of a row of 4, 3x3 with padding reads 2 + 3 + 3 + 2 elements; stride 2 reads 2 + 3.
    assert convolution("size=3x3 pad=1_1x1_1", "[2,4,4,8]", "[3,3,8,16]", "[2,4,4,16]") == 2 * 10 * 10 * 2 * 8 * 16
    strided = convolution("size=3x3 stride=2x2 pad=1_0x1_0", "[2,4,4,8]", "[3,3,8,16]", "[2,2,2,16]")
    assert strided == 2 * 5 * 5 * 2 * 8 * 16
    # Its input gradient: rows of 2 with a zero between; every product with an element of them counts.
    dilated = convolution("size=3x3 pad=1_2x1_2 lhs_dilate=2x2", "[2,2,2,16]", "[3,3,16,8]", "[2,4,4,8]")
    assert dilated == strided


def test_cycles_of_a_sort():
    text = """
ENTRY %main (x: f32[3,2000]) -> (f32[3,2000], s32[3,2000]) {
  %x = f32[3,2000]{1,0} parameter(0)
  ROOT %s = (f32[3,2000]{1,0}, s32[3,2000]{1,0}) sort(%x, %x), dimensions={1}, to_apply=%less
}
"""
    (sort,) = TpuProgram(text, CHIPS["v5e"], lambda *_: 1).kernels
    # 2048 elements take 11 * 12 / 2 stages over 3 * 2 registers of each of the two operands.
    assert sort.seconds == pytest.approx(66 * 6 * 2 * 4 / 1.5e9)


@pytest.mark.parametrize(
    ("compare", "trip_count"),
    [
        ("compare(%counter, %limit), direction=LT", 14),
        ("compare(%counter, %other), direction=LT", None),
        ("compare(%counter, %limit), direction=NE", None),
    ],
)
def test_counter_with_a_constant_limit(compare, trip_count):
    condition = f"""  %counter = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %other = s32[]{{:T(128)}} get-tuple-element(%state), index=2
  %limit = s32[]{{:T(128)}} constant(14)
  ROOT %go = pred[]{{:T(512)}} {compare}
"""
    text = PROGRAM.replace("  ROOT %go = pred[]{:T(512)} constant(true)\n", condition)
    (loop,) = TpuProgram(text, CHIPS["v5e"], lambda *_: 40).loops
    assert (loop.trip_count, loop.turns) == (trip_count, trip_count or 40)


def test_parts():
    assert part_of("transpose(jvp(MaskRCNN.features))/backbone/res2/add") == "gradient of backbone"
    assert part_of("jit(_where)/select_n") == "select_n"
    assert part_of("jit(_where)/select_n", "other") == "other"


def test_lengths_of_loops_are_found_by_name():
    turns = loop_lengths.measured_turns("training", 2, 40)
    table = loop_lengths.TURNS
    for number in (1, 2):
        measured = table[f"training, nms, proposals {number}"][1]
        assert turns("mrcnn_jax/ops/nms.py:77", "proposals/while", "(pred[512])") == measured
    source = "mrcnn_jax/ops/roi/window_products.py:63"
    shape = "(s32[], f32[128,56,256]{2,1,0:T(8,128)}, s32[128,1])"
    assert turns(source, "roi_align/while", shape) == table["training, roi_align 7x7 1"][1]
    for rows, bins, name in ((100, 49, "7x7 3"), (200, 49, "7x7 2"), (200, 196, "14x14 2"), (100, 196, "14x14 3")):
        gradient = f"(s32[], f32[{rows},34,8,256]{{3,2,1,0:T(8,128)S(1)}}, s32[256], f32[256,{bins}]{{1,0:T(8,128)}})"
        assert turns(source, "roi_align/while", gradient) == table[f"training, roi_align {name}"][1]
    assert turns("mrcnn_jax/ops/other.py:1", "while", shape) == 40


def test_loops_are_counted():
    def run(limits):
        def halve(limit):
            total = jax.lax.fori_loop(0, limit, lambda _, x: x + 1, 0)  # limit iterations
            fixed = jax.lax.fori_loop(0, 3, lambda _, x: x + 1, 0)
            platform = jax.lax.platform_dependent(total, tpu=lambda x: x + 100, default=lambda x: x)
            return jax.lax.while_loop(lambda x: x > 1, lambda x: x // 2, limit), platform + fixed

        return jax.vmap(halve)(limits)

    counted = loop_lengths.counted("tpu", run)
    for limits, expected in (([5, 16], [16, 4]), ([3, 2], [3, 1])):  # the longest of the mapped loops
        (last, platform), counts = counted(jnp.asarray(limits))
        assert counts == expected
        np.testing.assert_array_equal(last, 1)
        np.testing.assert_array_equal(platform, np.array(limits) + 103)
