"""How rows are cut into tiles, and weights laid out in panels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hawq_tvm.kernels.dot.cut import Cut, Shape, Tiling, even_groups, tile_of
from hawq_tvm.kernels.dot.panels import Panels

from .dot_kernels import VNNI


@given(width=st.integers(1, 300))
def test_tiles_repeat_least(width: int) -> None:
    tile = tile_of(width, VNNI)
    assert 1 <= tile <= min(width, VNNI.max_tile)
    work = {t: -(-width // t) * (t + 1) for t in range(1, min(width, VNNI.max_tile) + 1)}
    assert work[tile] == min(work.values())


@given(width=st.integers(1, 60), tile=st.integers(1, 12))
def test_the_tiles_of_a_row_compute_each_pixel_once(width: int, tile: int) -> None:
    cut = Cut(Shape(False, 1, width, Panels(VNNI, 16, 1), 4, 4, 0), Tiling(min(tile, width), 1, 1, False))
    assert sum(count for count, _ in cut.runs) == cut.tiles
    assert sum(count * pixels for count, pixels in cut.runs) == width
    assert all(0 < pixels <= cut.tile for _, pixels in cut.runs)


@given(channels=st.sampled_from([16, 32, 48, 96, 112]), steps=st.integers(1, 5), packed=st.booleans(), data=st.data())
def test_panels_hold_every_weight_once(channels: int, steps: int, packed: bool, data: st.DataObject) -> None:
    out = data.draw(st.integers(channels - 15, channels))
    rng, limit = np.random.default_rng(steps), 8 if packed else 128
    weight = rng.integers(-limit, limit, (out, 4 * steps)).astype(np.int8)
    panels = Panels(VNNI, channels, steps, packed)
    stream = panels.pack(weight)
    assert stream.nbytes == panels.size_bytes
    per_channel = panels.pack_lanes(np.arange(1, out + 1))
    for channel in range(channels):
        block, within = divmod(channel, 32)
        vectors = 2 if block < panels.pairs else 1
        lane = VNNI.order.index(within) if vectors == 2 else within
        assert per_channel[32 * block + lane] == (channel + 1 if channel < out else 0)
        for k in range(4 * steps):
            start = block * panels.panel_bytes + k // 4 * panels.step_bytes(vectors)
            if packed:
                byte = int(stream[start + lane % 16 * 4 + k % 4])
                value = ((byte >> 4 * (lane // 16) & 15) ^ 8) - 8
            else:
                value = int(stream[start + lane * 4 + k % 4])
            assert value == (weight[channel, k] if channel < out else 0)


@given(rows=st.integers(1, 500), wanted=st.integers(1, 20), multiple=st.integers(1, 2))
def test_groups_of_rows_are_of_one_size_and_near_as_many_as_wanted(rows: int, wanted: int, multiple: int) -> None:
    found = even_groups(rows, wanted, multiple)
    if rows % multiple:
        assert found == min(rows, wanted)
        return
    assert rows % found == found % multiple == 0
    others = [count for count in range(multiple, rows + 1, multiple) if rows % count == 0]
    assert abs(found - wanted) == min(abs(count - wanted) for count in others)


def test_eight_samples_are_cut_between_them() -> None:
    """So that two threads get as many rows each, of the same samples layer after layer."""
    assert [even_groups(8 * height, wanted, 2) for height, wanted in ((56, 9), (28, 5), (14, 3), (7, 3))] == [
        8,
        4,
        4,
        4,
    ]
