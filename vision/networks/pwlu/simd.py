"""The piecewise linear operator in vector registers: a table of 32 pieces is looked up by permutes.

A gather from memory costs several cycles for every number; a permute of registers looks up all lanes at
once. Lines run along positions, as in NCHW. In channels_last every lane is another channel, so a
tile of positions x channels is turned in registers first. Only AVX2 and AVX-512 have such permutes.
bfloat16 is widened as it is loaded and rounded as it is stored; its bits arrive as uint16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PIECES = 32  # entries of a table, N + 2 and padding
_FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 0

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_V, _VI, _VH = (ir.VectorType(kind, LANES or 1) for kind in (_F32, _I32, _I16))
_PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}.get(LANES, "")


class _Memory(NamedTuple):
    """A contiguous array of float32, float64, int32, or uint16 for bfloat16."""

    start: Any  # pointer to its numbers
    kind: Any  # of its numbers, numba's

    @property
    def is_bfloat16(self) -> bool:
        return self.kind == types.uint16


def _memories(context, builder, signature, args) -> list[Any]:
    """Arguments as they are, arrays as `_Memory`."""
    return [
        _Memory(context.make_array(kind)(context, builder, value).data, kind.dtype)
        if isinstance(kind, types.Array)
        else value
        for kind, value in zip(signature.args, args, strict=True)
    ]


def _widen(builder, bits: Any, wide: Any, real: Any) -> Any:
    return builder.bitcast(builder.shl(builder.zext(bits, wide), _all(wide, 16)), real)


def _round(builder, value: Any, wide: Any, narrow: Any) -> Any:
    """Round to the nearest bfloat16, ties to even."""
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, _all(wide, 16)), _all(wide, 1))
    rounded = builder.add(bits, builder.add(odd, _all(wide, 0x7FFF)))
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, builder.or_(bits, _all(wide, 0x400000)), rounded)
    return builder.trunc(builder.lshr(rounded, _all(wide, 16)), narrow)


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * LANES if isinstance(kind, ir.VectorType) else value)


@intrinsic
def get(typingctx, array, index):
    """array[index]; of bfloat16 as float32."""
    result = types.float32 if array.dtype == types.uint16 else array.dtype

    def generate(context, builder, signature, args):
        memory, index = _memories(context, builder, signature, args)
        value = builder.load(builder.gep(memory.start, [index]))
        return _widen(builder, value, _I32, _F32) if memory.is_bfloat16 else value

    return result(array, types.int64), generate


@intrinsic
def put(typingctx, array, index, value):
    """array[index] = value; to bfloat16 from float32."""
    given = types.float32 if array.dtype == types.uint16 else array.dtype

    def generate(context, builder, signature, args):
        memory, index, value = _memories(context, builder, signature, args)
        value = _round(builder, value, _I32, _I16) if memory.is_bfloat16 else value
        builder.store(value, builder.gep(memory.start, [index]))
        return context.get_dummy_value()

    return types.void(array, types.int64, given), generate


class _Lines:
    """Instructions on vectors of LANES float32."""

    def __init__(self, builder):
        self.builder = builder
        name = ir.FunctionType(_V, [_V, _VI])
        self.permute = cgutils.get_or_insert_function(builder.module, name, _PERMUTE)

    def load(self, memory: _Memory, index: Any) -> Any:
        """LANES numbers from ``index`` on."""
        b, start = self.builder, self.builder.gep(memory.start, [index])
        if memory.is_bfloat16:
            bits = b.load(b.bitcast(start, _VH.as_pointer()), align=2)
            return _widen(b, bits, _VI, _V)
        return b.load(b.bitcast(start, _V.as_pointer()), align=4)

    def store(self, value: Any, memory: _Memory, index: Any) -> None:
        b, start = self.builder, self.builder.gep(memory.start, [index])
        if memory.is_bfloat16:
            b.store(_round(b, value, _VI, _VH), b.bitcast(start, _VH.as_pointer()), align=2)
        else:
            b.store(value, b.bitcast(start, value.type.as_pointer()), align=4)

    def splat(self, scalar: Any) -> Any:
        lane = self.builder.insert_element(ir.Constant(_V, ir.Undefined), scalar, _I32(0))
        return self.builder.shuffle_vector(lane, ir.Constant(_V, ir.Undefined), _all(_VI, 0))

    def number(self, memory: _Memory, index: Any) -> Any:
        """One number, in all lanes."""
        return self.splat(self.builder.load(self.builder.gep(memory.start, [index])))

    def pieces(self, x: Any, left: Any, scale: Any, top: Any) -> tuple[Any, Any]:
        """Piece of every lane, and t - origin."""
        b = self.builder
        t = b.fmul(b.fsub(x, left), scale)
        p = b.fadd(t, _all(_V, 1.0))
        p = b.select(b.fcmp_ordered(">", p, _all(_V, 0.0)), p, _all(_V, 0.0))  # also of NaN
        p = b.fptosi(b.select(b.fcmp_ordered("<", p, top), p, top), _VI)
        origin = b.sub(p, _all(_VI, 1))
        origin = b.select(b.icmp_signed(">", origin, _all(_VI, 0)), origin, _all(_VI, 0))
        return p, b.fsub(t, b.sitofp(origin, _V))

    def look_up(self, table: _Memory, start: Any, piece: Any) -> Any:
        """table[start + piece] for every lane."""
        b, value = self.builder, None
        for first in range(0, PIECES, LANES):
            part = self.load(table, b.add(start, _I64(first)))
            chosen = b.call(self.permute, [part, piece])
            if value is None:
                value = chosen
            else:
                value = b.select(b.icmp_signed("<", piece, _all(_VI, first)), value, chosen)
        return value

    def turn(self, rows: list[Any]) -> list[Any]:
        """LANES vectors as columns instead of rows."""
        step = 1
        while step < LANES:
            low = [i if not i & step else LANES + (i ^ step) for i in range(LANES)]
            high = [LANES + i if i & step else i ^ step for i in range(LANES)]
            turned = list(rows)
            for i in range(LANES):
                if not i & step:
                    pair = rows[i], rows[i | step]
                    for where, mask in ((i, low), (i | step, high)):
                        turned[where] = self.builder.shuffle_vector(*pair, ir.Constant(_VI, mask))
            rows, step = turned, 2 * step
        return rows


def _forward(lines: _Lines, x: Any, tables: tuple, channel: Any) -> Any:
    left, scale, base, rise, top = tables
    start = lines.builder.mul(channel, _I64(PIECES))
    piece, t = lines.pieces(x, lines.number(left, channel), lines.number(scale, channel), top)
    value, slope = lines.look_up(base, start, piece), lines.look_up(rise, start, piece)
    return lines.builder.fadd(value, lines.builder.fmul(t, slope))


def _backward(lines: _Lines, x: Any, gradient: Any, tables: tuple, channel: Any) -> tuple:
    """Gradient of x, piece, gradient * (t - origin)."""
    left, scale, rise, top = tables
    b, start = lines.builder, lines.builder.mul(channel, _I64(PIECES))
    step = lines.number(scale, channel)
    piece, t = lines.pieces(x, lines.number(left, channel), step, top)
    slope = b.fmul(lines.look_up(rise, start, piece), step)
    return b.fmul(gradient, slope), piece, b.fmul(gradient, t)


def _signature(*arguments: Any) -> Any:
    """Arrays as they come, indices as int64, the last piece as float32."""
    *rest, _ = arguments
    kinds = [kind if isinstance(kind, types.Array) else types.int64 for kind in rest]
    return types.void(*kinds, types.float32)


@intrinsic
def forward_line(typingctx, x, y, at, channel, left, scale, base, rise, top):
    """LANES positions of one channel, from number ``at`` on."""

    def generate(context, builder, signature, args):
        x, y, at, channel, *tables, top = _memories(context, builder, signature, args)
        lines = _Lines(builder)
        lines.store(_forward(lines, lines.load(x, at), (*tables, lines.splat(top)), channel), y, at)
        return context.get_dummy_value()

    return _signature(x, y, at, channel, left, scale, base, rise, top), generate


@intrinsic
def forward_tile(typingctx, x, y, at, row, channel, left, scale, base, rise, top):
    """LANES positions, ``row`` numbers apart, of LANES channels from ``channel`` on."""

    def generate(context, builder, signature, args):
        x, y, at, row, channel, *tables, top = _memories(context, builder, signature, args)
        lines = _Lines(builder)
        all_tables = (*tables, lines.splat(top))
        places = [builder.add(at, builder.mul(row, _I64(i))) for i in range(LANES)]
        columns = lines.turn([lines.load(x, place) for place in places])
        out = [
            _forward(lines, column, all_tables, builder.add(channel, _I64(i)))
            for i, column in enumerate(columns)
        ]
        for place, values in zip(places, lines.turn(out), strict=True):
            lines.store(values, y, place)
        return context.get_dummy_value()

    return _signature(x, y, at, row, channel, left, scale, base, rise, top), generate


@intrinsic
def backward_line(typingctx, g, x, grad_x, kept, pieces, at, channel, left, scale, rise, top):
    """As `forward_line`; kept [2 * LANES]: gradient, and gradient * (t - origin); pieces [LANES]."""

    def generate(context, builder, signature, args):
        g, x, grad_x, kept, pieces, at, channel, *tables, top = _memories(
            context, builder, signature, args
        )
        lines = _Lines(builder)
        gradient, all_tables = lines.load(g, at), (*tables, lines.splat(top))
        out, piece, grad_t = _backward(lines, lines.load(x, at), gradient, all_tables, channel)
        lines.store(out, grad_x, at)
        lines.store(gradient, kept, _I64(0))
        lines.store(grad_t, kept, _I64(LANES))
        lines.store(piece, pieces, _I64(0))
        return context.get_dummy_value()

    return _signature(g, x, grad_x, kept, pieces, at, channel, left, scale, rise, top), generate


@intrinsic
def backward_tile(typingctx, g, x, grad_x, kept, pieces, at, row, channel, left, scale, rise, top):
    """As `forward_tile`; kept [2 * LANES * LANES] and pieces [LANES * LANES] channel by channel."""

    def generate(context, builder, signature, args):
        g, x, grad_x, kept, pieces, at, row, channel, *tables, top = _memories(
            context, builder, signature, args
        )
        lines = _Lines(builder)
        all_tables = (*tables, lines.splat(top))
        places = [builder.add(at, builder.mul(row, _I64(i))) for i in range(LANES)]
        gradients = lines.turn([lines.load(g, place) for place in places])
        columns = lines.turn([lines.load(x, place) for place in places])
        out = []
        for i, (column, gradient) in enumerate(zip(columns, gradients, strict=True)):
            this_channel = builder.add(channel, _I64(i))
            value, piece, grad_t = _backward(lines, column, gradient, all_tables, this_channel)
            out.append(value)
            lines.store(gradient, kept, _I64(i * LANES))
            lines.store(grad_t, kept, _I64((LANES + i) * LANES))
            lines.store(piece, pieces, _I64(i * LANES))
        for place, values in zip(places, lines.turn(out), strict=True):
            lines.store(values, grad_x, place)
        return context.get_dummy_value()

    arguments = g, x, grad_x, kept, pieces, at, row, channel, left, scale, rise, top
    return _signature(*arguments), generate


# The loops over memory. Tables are flat, ``stride`` entries for a channel; the last piece is ``top``.


def _compiled(loop: Any) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError:  # no folder to cache in can be written
        return numba.njit(nogil=True, error_model="numpy")(loop)


@_compiled
def _one_forward(x, y, i, channel, left, scale, base, rise, stride, top):
    t = (get(x, i) - left[channel]) * scale[channel]
    p = int(min(max(t + left.dtype.type(1), left.dtype.type(0)), top))
    put(
        y,
        i,
        base[channel * stride + p]
        + (t - left.dtype.type(max(p - 1, 0))) * rise[channel * stride + p],
    )


@_compiled
def _one_backward(g, x, grad_x, i, channel, left, scale, rise, sums, stride, top):
    t = (get(x, i) - left[channel]) * scale[channel]
    p = int(min(max(t + left.dtype.type(1), left.dtype.type(0)), top))
    gradient, at = get(g, i), channel * stride + p
    put(grad_x, i, gradient * rise[at] * scale[channel])
    sums[at, 0] += gradient
    sums[at, 1] += gradient * (t - left.dtype.type(max(p - 1, 0)))


@_compiled
def forward_plain(x, y, left, scale, base, rise, inner, stride, top, first, last):
    """Rows of ``inner`` numbers, each of one channel; any type and number of pieces."""
    for row in range(first, last):
        channel = row % len(left)
        for i in range(row * inner, (row + 1) * inner):
            _one_forward(x, y, i, channel, left, scale, base, rise, stride, top)


@_compiled
def backward_plain(g, x, grad_x, left, scale, rise, sums, inner, stride, top, first, last):
    """As `forward_plain`; adds to sums [channels * stride, 2]."""
    for row in range(first, last):
        channel = row % len(left)
        for i in range(row * inner, (row + 1) * inner):
            _one_backward(g, x, grad_x, i, channel, left, scale, rise, sums, stride, top)


@_compiled
def forward_rows(x, y, left, scale, base, rise, inner, stride, top, first, last):
    """Rows of ``inner`` numbers, each of one channel."""
    for row in range(first, last):
        channel = row % len(left)
        i, end = row * inner, (row + 1) * inner
        while i + LANES <= end:
            forward_line(x, y, i, channel, left, scale, base, rise, top)
            i += LANES
        while i < end:
            _one_forward(x, y, i, channel, left, scale, base, rise, stride, top)
            i += 1


@_compiled
def backward_rows(g, x, grad_x, left, scale, rise, sums, inner, stride, top, first, last):
    """As `forward_rows`; adds to sums [channels * stride, 2]."""
    kept, pieces = np.empty(2 * LANES, np.float32), np.empty(LANES, np.int32)
    for row in range(first, last):
        channel = row % len(left)
        i, end = row * inner, (row + 1) * inner
        while i + LANES <= end:
            backward_line(g, x, grad_x, kept, pieces, i, channel, left, scale, rise, top)
            for lane in range(LANES):
                at = channel * stride + pieces[lane]
                sums[at, 0] += kept[lane]
                sums[at, 1] += kept[LANES + lane]
            i += LANES
        while i < end:
            _one_backward(g, x, grad_x, i, channel, left, scale, rise, sums, stride, top)
            i += 1


@_compiled
def forward_columns(x, y, left, scale, base, rise, inner, stride, top, first, last):
    """Rows of one number of every channel, of which there must be a multiple of LANES."""
    width, row = len(left), first
    while row + LANES <= last:
        for channel in range(0, width, LANES):
            at = row * width + channel
            forward_tile(x, y, at, width, channel, left, scale, base, rise, top)
        row += LANES
    for i in range(row * width, last * width):
        _one_forward(x, y, i, i % width, left, scale, base, rise, stride, top)


@_compiled
def backward_columns(g, x, grad_x, left, scale, rise, sums, inner, stride, top, first, last):
    """As `forward_columns`; adds to sums [channels * stride, 2]."""
    kept = np.empty(2 * LANES * LANES, np.float32)
    pieces = np.empty(LANES * LANES, np.int32)
    width, row = len(left), first
    while row + LANES <= last:
        for channel in range(0, width, LANES):
            at = row * width + channel
            backward_tile(g, x, grad_x, kept, pieces, at, width, channel, left, scale, rise, top)
            # Channel after channel, so that neighbours do not add to the same sum.
            for lane in range(LANES):
                for c in range(LANES):
                    i = c * LANES + lane
                    at = (channel + c) * stride + pieces[i]
                    sums[at, 0] += kept[i]
                    sums[at, 1] += kept[LANES * LANES + i]
        row += LANES
    for i in range(row * width, last * width):
        _one_backward(g, x, grad_x, i, i % width, left, scale, rise, sums, stride, top)
