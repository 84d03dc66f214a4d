"""The policy of codebooks that HAQ's authors published for ResNet-50, beside the program's and uniform bits.

    python -m benchmarks.haq_codebooks DATA [--folder FOLDER]

DATA and FOLDER are as for `benchmarks.allocators`. Weights are k-means codebooks of 2 to 6 bits an index, one a layer,
fitted on calibration images, each layer by itself; activations have 8 bits, where HAQ leaves them real. No policy is
fine-tuned, as theirs was before it was measured. The integers run on the images that no choice saw, in the library that
TVM compiles of them. Within the bytes of the published policy stand the program by the network's divergence and the
most bits that all layers can have alike; one bit more stands there too, to show what the next step is worth.

Rows that are there already are kept. Writes ``benchmarks/results/haq_codebooks.json`` and its table in ``docs/haq.md``;
``--tables`` writes that alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.haq_published import measure_and_write
from benchmarks.runs import markdown, read_results
from benchmarks.subjects import Effort, Entry, Subject, paired
from hawq_tvm.core.budget import Budget
from hawq_tvm.core.codebook import CODEBOOK_BITS
from hawq_tvm.core.specs import BitConfig, Bits, CostTable
from hawq_tvm.ilp import formulate
from hawq_tvm.search import ALLOCATORS, Resources
from hawq_tvm.sources.models import load_model
from hawq_tvm.sources.options import Preprocessing

NETWORK = Entry(
    "resnet50",
    "resnet50_imagenet.safetensors",
    "imagefolder:{}/imagenet_sample.zip",
    Preprocessing(),
    *(64, 0, 936),
    widths=(),
    codebooks=CODEBOOK_BITS,
    effort=Effort(loss_samples=16),
)
FACTS = json.loads((Path(__file__).parents[1] / "tests" / "facts" / "haq.json").read_text())
POLICY: list[int] = FACTS["policies"]["resnet50_kmeans_0.1"]
"""Bits of each layer's indexes, in the order of the network's modules, with their source in that file."""


def indexed(bits: int) -> Bits:
    """A codebook of so many bits; activations of 8."""
    return Bits(bits, 8, codebook=True)


def policies(table: CostTable, theirs: BitConfig) -> Iterator[tuple[str, BitConfig]]:
    """Who chose, and the bits: the published ones, the program's in their bytes, uniform ones below and above those.

    The program chooses once more with the published bits in the last layer, which has one output position an image:
    that layer's weights are fitted to as many rows as there are calibration images, and its divergence is measured on
    some of the same.

    Args:
        table: of the codebooks, with sensitivities.
        theirs: the published policy.
    """
    yield "HAQ's authors", theirs
    limit = table.total(theirs, "size_bytes")
    last = table.names[-1]
    for who, pins in (("the program by kl", {}), (f"the same, {last} as theirs", {last: theirs.layers[last]})):
        yield who, ALLOCATORS["highs"](formulate(table, Budget(size=limit), pins=pins), Resources()).bits
    uniform = [BitConfig.uniform(table.names, indexed(bits)) for bits in CODEBOOK_BITS]
    within = [bits for bits in uniform if table.total(bits, "size_bytes") <= limit]
    for bits in uniform[max(len(within) - 1, 0) : len(within) + 1]:
        yield f"uniform {next(iter(bits.layers.values()))}", bits


def rows(data: Path, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row that is not there yet."""
    subject = Subject("resnet50 codebooks", NETWORK, data, folder)
    subject.profile(["kl"])
    table = subject.costs("kl")
    known = set(table.names)
    modules = load_model(NETWORK.model, "random").module.named_modules()
    names = [name for name, _ in modules if name in known]
    theirs = BitConfig({name: indexed(bits) for name, bits in zip(names, POLICY, strict=True)}, "published")
    parameters = {layer.name: layer.parameters for layer in table.layers}
    for who, bits in policies(table, theirs):
        if who in read_results("haq_codebooks"):
            continue
        got = subject.right(bits)[1]
        beside = paired(got, subject.right(theirs)[1])
        yield (
            who,
            {
                "who": who,
                "bits": {name: repr(bits.layers[name]) for name in names},
                "size_bytes": table.total(bits, "size_bytes"),
                "index_bytes": sum(parameters[name] * pair.weight for name, pair in bits.layers.items()) / 8,
                "divergence": table.total(bits, "sensitivity"),
                **paired(got, subject.float_right()[1]),
                "beside_theirs": {name: beside[name] for name in ("difference", "standard_error")},
            },
        )


def table_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Sizes, and what the integers read."""
    cells = [
        [
            row["who"],
            f"{row['index_bytes'] / 1e6:.2f}",
            f"{row['divergence']:.3f}",
            f"{row['integer_top1']:.1%}",
            points(row),
            points(row["beside_theirs"]) if row["beside_theirs"]["standard_error"] else "",
        ]
        for row in results.values()
    ]
    names = ("chosen by", "MB of indexes", "kl, summed", "integers", "- float, points", "- the authors', points")
    return markdown(names, cells)


def points(found: Mapping[str, Any]) -> str:
    """A paired difference with its standard error."""
    return f"{100 * found['difference']:+.1f} ± {100 * found['standard_error']:.1f}"


if __name__ == "__main__":
    measure_and_write(__doc__.splitlines()[0], "haq_codebooks", rows, table_of)
