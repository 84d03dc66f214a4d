"""Networks compiled for the T4 on a machine without one: is what was promised of the libraries in them?

    python -m benchmarks.gpu_matrix [--networks ResNet-18 ...] [--configurations INT8 ...] [--batches 1 8] [--cold]

Compiles each network in each configuration at each batch and reads what came out: machine code for sm_75 of every
kernel, no kernel that spills, and in the machine code of every dense convolution and linear layer the tensor core
instruction of its bits. Ends with status 1 where a library breaks one of these. Weights are random: what is looked at
does not depend on them.

Compiled kernels are kept while this runs, so that those that networks share are compiled once, as they are for a user;
``--cold`` keeps nothing from one library to the next, so that the seconds are those of a first compilation. Prints a
table and writes ``benchmarks/results/gpu_matrix.json``, in which libraries that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from unittest import mock

from benchmarks.random_networks import integers
from benchmarks.runs import markdown, read_results, write_results
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.disassembly import find_disassembler
from hawq_tvm.backends.tvm.cuda.fatbin import ELF, find_fatbins, read_fatbin
from hawq_tvm.backends.tvm.info import GpuInfo, LibraryInfo
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.ir import Graph, Node
from hawq_tvm.core.ops import Conv2d, Linear, WeightedOperator
from hawq_tvm.core.targets import find_target

TARGET = find_target("nvidia/t4")
ARCHITECTURE = T4.architecture
NETWORKS = {"ResNet-18": "resnet18", "ResNet-50": "resnet50", "MobileNet-V2": "torchvision:mobilenet_v2"}
CONFIGURATIONS = {"INT8": ("w8a8",), "INT4": ("w4a4",), "mixed": ("w4a4", "w8a8", "w4a8", "w4a4", "w8a8")}
"""Bits of all layers but the first and the last, which have 8. Mixed layers take turns, so that there is every border
between widths; five of them, so that no kind of layer gets the same bits in every block of three."""
BATCHES = (1, 8)


@dataclass(frozen=True)
class Compiled:
    """What became of one network.

    Attributes:
        network: its name.
        configuration: of its bits.
        batch: samples a call.
        wall_s: seconds that compiling took, from the integer graph to the files.
        cpu_s: seconds of all processes that worked on it.
        cold: whether no kernel was there before.
        kernels: distinct ones.
        spilling: of these, how many spill registers.
        dense: dense convolutions and linear layers.
        instructions: of these, how many have which tensor core instruction, by how its name begins.
        planned_bytes: activation memory.
        library_bytes: of the file.
        broken: promises that do not hold, a sentence each.
    """

    network: str
    configuration: str
    batch: int
    wall_s: float
    cpu_s: float
    cold: bool
    kernels: int
    spilling: int
    dense: int
    instructions: dict[str, int]
    planned_bytes: int
    library_bytes: int
    broken: list[str]

    @property
    def key(self) -> str:
        return f"{self.network}, {self.configuration}, batch {self.batch}"


def main(words: Sequence[str] | None = None) -> int:
    """Compile and look; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--cold", action="store_true", help="keep no compiled kernel from one library to the next")
    arguments = parser.parse_args(words)
    if find_disassembler() is None:
        sys.exit("error: no disassembler, and machine code must be read; pip install nvidia-cuda-nvdisasm")
    broken = []
    with empty_cache():
        for network, configuration in product(arguments.networks, arguments.configurations):
            graph = integers(NETWORKS[network], CONFIGURATIONS[configuration])
            for batch in arguments.batches:
                with empty_cache() if arguments.cold else nullcontext():
                    found = compiled(graph, network, configuration, batch, cold=arguments.cold)
                broken += [f"{found.key}: {sentence}" for sentence in found.broken]
                dated = {"date": datetime.now(UTC).date().isoformat(), **asdict(found)}
                write_results("gpu_matrix", {**read_results("gpu_matrix"), found.key: dated})
                print(table([found]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(kept()))
    print("\n".join(["", *broken]) if broken else "\nevery promise holds")
    return 1 if broken else 0


def kept() -> list[Compiled]:
    """What earlier runs wrote too, network by network."""
    rows = read_results("gpu_matrix").values()
    found = [Compiled(**{name: value for name, value in row.items() if name != "date"}) for row in rows]
    configurations, networks = list(CONFIGURATIONS), list(NETWORKS)
    return sorted(
        found, key=lambda row: (networks.index(row.network), configurations.index(row.configuration), row.batch)
    )


@contextmanager
def empty_cache() -> Iterator[None]:
    """No compiled kernel is there at first, and none is left behind."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}):
        yield


def compiled(graph: Graph, network: str, configuration: str, batch: int, *, cold: bool) -> Compiled:
    """Compile one library, and look at it.

    Args:
        graph: the network in integers.
        network: what it is called.
        configuration: what its bits are called.
        batch: samples a call.
        cold: what is said of the kernels that are there already.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TARGET.library_name
        wall, cpu = time.perf_counter(), cpu_seconds()
        info = build_library(lower(graph, TARGET, batch=batch), path)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        data = path.read_bytes()
    assert info.gpu is not None
    return Compiled(
        network,
        configuration,
        batch,
        round(wall, 1),
        round(cpu, 1),
        cold,
        len(info.gpu.kernels),
        sum(kernel.spill_bytes > 0 for kernel in info.gpu.kernels.values()),
        len(dense_layers(graph)),
        instructions(graph, info),
        info.planned_bytes,
        len(data),
        broken_promises(graph, info, data),
    )


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def dense_layers(graph: Graph) -> list[Node]:
    """Linear layers, and convolutions in which every channel meets every other."""
    return [
        node for node in graph if isinstance(node.op, Linear) or (isinstance(node.op, Conv2d) and node.op.groups == 1)
    ]


def wanted_instruction(graph: Graph, node: Node) -> str:
    """How the name of the tensor core instruction begins that a layer of these bits should be multiplied by.

    4 bits, where the GPU multiplies them, are for convolutions: of linear layers, weights are read once, and features
    lie in bytes.
    """
    assert isinstance(node.op, WeightedOperator)
    widest = max(node.op.weight_bits, graph.types[node.inputs[0]].dtype.bits)
    bits = 4 if widest <= 4 and isinstance(node.op, Conv2d) and ARCHITECTURE.native(4) else 8
    return ARCHITECTURE.mma[bits][0].sass


def instruction(gpu: GpuInfo, node: Node, wanted: str) -> str:
    """A tensor core instruction of a layer's kernels: the wanted one, as it begins, or else any; empty without one."""
    held = [name for kernel in gpu.launched_by(node.name).values() for name in kernel.tensor_core or ()]
    return wanted if any(name.startswith(f"{wanted}.") for name in held) else next(iter(held), "")


def instructions(graph: Graph, info: LibraryInfo) -> dict[str, int]:
    """How many dense layers have which tensor core instruction; `none` where one has none."""
    assert info.gpu is not None
    layers = dense_layers(graph)
    return dict(Counter(instruction(info.gpu, node, wanted_instruction(graph, node)) or "none" for node in layers))


def broken_promises(graph: Graph, info: LibraryInfo, library: bytes) -> list[str]:
    """What of the promises does not hold, a sentence each.

    Args:
        graph: that was compiled.
        info: what the library says of itself.
        library: the file, whose machine code is looked at.
    """
    assert info.gpu is not None
    held = {hashlib.sha256(found).hexdigest(): read_fatbin(found) for found in find_fatbins(library)}
    broken = []
    for name, kernel in info.gpu.kernels.items():
        codes = [(entry.kind, entry.architecture) for entry in held.get(kernel.image, [])]
        if (ELF, ARCHITECTURE.number) not in codes:
            broken.append(f"kernel '{name}' has no machine code for {ARCHITECTURE.sm}")
        if kernel.spill_bytes:
            broken.append(f"kernel '{name}' spills {kernel.spill_bytes} bytes of registers")
    for node in dense_layers(graph):
        wanted = wanted_instruction(graph, node)
        found = instruction(info.gpu, node, wanted)
        if found != wanted:
            broken.append(f"layer '{node.name}' has {found or 'no tensor core instruction'}, not {wanted}")
    return broken


def table(rows: Sequence[Compiled]) -> str:
    """What was found, to be read."""
    names = ("network", "bits", "batch", "kernels", "spilling", "dense layers", "their instructions",
             "activations MB", "library MB", "compile CPU s", "wall s", "broken")  # fmt: skip
    return markdown(names, [
        (row.network, row.configuration, f"{row.batch}", f"{row.kernels}", f"{row.spilling}", f"{row.dense}",
         ", ".join(f"{count} {name}" for name, count in sorted(row.instructions.items())),
         f"{row.planned_bytes / 1e6:.2f}", f"{row.library_bytes / 1e6:.1f}",
         f"{row.cpu_s:.0f}{'' if row.cold else ' (shared)'}", f"{row.wall_s:.0f}", f"{len(row.broken)}")
        for row in rows
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
