"""The accelerators: a page of data each. Beside every number stands where it comes from.

Sources:
    [HAQ] K. Wang et al., HAQ, CVPR 2019 (arXiv 1811.08886v3): table 2 (array, ports, batch), section 4.1 (256 bits a
        word); tables 3 to 5 are what the pages are checked against (`docs/simulators.md`).
    [LUT] the table of cycles at github mit-han-lab/haq, lib/simulator/lookup_tables.
    [BISMO] github EECS-NTNU/bismo: doc/hardware.md and platforms.md (200 MHz, 8 x 256 x 8 on this very Zynq), README
        of 2018 (less than 5 W for 6.5 binary TOPS on the PYNQ-Z1, whose chip is the Zynq-7020).
    [conf] github hsharma35/bitfusion, conf.ini.
    [BitFusion] H. Sharma et al., Bit Fusion, ISCA 2018 (arXiv 1712.01507).
    [fit] fitted by us: the energy of memory to row 8/8 of HAQ's table 5, the edge's depthwise channels with table 3 in
        view. `docs/simulators.md` says what was held out, which is little.
"""

from __future__ import annotations

from hawq_tvm.ilp.simulators.bit_fusion import FusionArray
from hawq_tvm.ilp.simulators.bit_serial import BitSerialArray

BISMO_CLOUD = BitSerialArray(
    name="BISMO on a VU9P",
    origin="HAQ's table 2 and its published table of cycles",
    side=16,  # [HAQ]
    word_bits=256,  # [HAQ]
    port_bits=256,  # [HAQ]: four ports; [LUT]: one of them feeds each operand
    buffer_words=1024,  # [LUT]; two operands of 16 x 256 bits then take 256 of the 2,160 block RAMs
    depthwise_channels=16,  # [LUT]: as many as the array has columns
    clock_mhz=200,  # [BISMO]; with both ends left out it gives all eight uniform rows of HAQ's table 3
    batch=16,  # [HAQ]
    watts=None,  # not published
)

BISMO_EDGE = BitSerialArray(
    name="BISMO on a Zynq-7020",
    origin="HAQ's table 2 and BISMO's platforms",
    side=8,  # [HAQ], [BISMO]
    word_bits=256,  # [HAQ], [BISMO]
    port_bits=64,  # [HAQ]: four ports; one feeds each operand, as in the cloud
    buffer_words=1024,  # as in the cloud; two operands of 8 x 256 bits then take 128 of the 140 block RAMs
    depthwise_channels=1,  # [fit] of 1, 2, 4 and 8, to table 3
    clock_mhz=200,  # [BISMO]
    batch=1,  # [HAQ]
    watts=5.0,  # [BISMO]: the board draws less, so energies are upper bounds
)

BITFUSION = FusionArray(
    name="BitFusion",
    origin="its authors' simulator, conf.ini and power; energy of memory fitted to one row of HAQ's table 5",
    rows=8,  # [conf], and down to the clock
    columns=8,
    max_bits=8,
    min_bits=2,
    port_bits=128,
    buffer_bytes={"weights": 262144, "activations": 65536, "sums": 16384},
    clock_mhz=500,
    batch=1,  # HAQ calls it an edge accelerator and prints no batch
    watts=0.895,  # [BitFusion], abstract; of another size and process than [conf], and what fits
    memory_pj=56.5,  # [fit]
)
