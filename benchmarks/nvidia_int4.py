"""NVIDIA's own INT4 ResNet-50 on a T4: what is predicted beside what NVIDIA measured, and the examples of a deployment.

    python -m benchmarks.nvidia_int4 DATA [--images 3] [--calibration-samples 32]

DATA is as of `benchmarks.imagenet`. The network is turned into integers with the ranges that it was trained with and
compiled for the T4. ``examples/deploy``, in Python and in C++, then run the library on an emulated T4, on images of the
sample that lie evenly over its classes. Ends with status 1 where their integers are not the interpreter's, or where a
class is not that of the folder that the image lies in. Writes ``benchmarks/results/nvidia_int4.json``.

The GPU's rules are not checked while the examples run, which takes a fifth of the time: `hawq-tvm verify` and
``tests/test_cuda_whole.py`` check them.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.gpu_model import NVIDIAS, PUBLISHED, T4_TARGET, Whole, in_form
from benchmarks.nvidias_network import checkpoint, quantized
from benchmarks.runs import markdown, write_results
from hawq_tvm.backends.tvm.build import build_library
from hawq_tvm.backends.tvm.cuda.emulated import emulated_program
from hawq_tvm.backends.tvm.info import ImageInput
from hawq_tvm.backends.tvm.lower import lower
from hawq_tvm.backends.tvm.storage import plan_storages
from hawq_tvm.core import interpreter
from hawq_tvm.core.gpu import T4
from hawq_tvm.core.ir import Graph
from hawq_tvm.emulator import Conditions
from hawq_tvm.sources.data import load_data
from hawq_tvm.sources.decoding import preprocess
from hawq_tvm.sources.options import DataOptions, Preprocessing

EXAMPLES = Path(__file__).parent.parent / "examples" / "deploy"
SAMPLE = "imagenet_sample.zip"
BATCHES = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Answer:
    """What a network says of an image: the class, and the integers of all classes."""

    class_: int
    integers: tuple[int, ...]


def main(words: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--calibration-samples", type=int, default=32)
    arguments = parser.parse_args(words)
    if not checkpoint(arguments.data).is_file():
        sys.exit(f"error: {checkpoint(arguments.data)} is not there; see the data of benchmarks.imagenet")
    options = DataOptions(calibration_samples=arguments.calibration_samples, evaluation_samples=32)
    samples = load_data(f"imagefolder:{arguments.data / SAMPLE}", options)
    graph = quantized(samples, arguments.data).graph
    predicted = predictions(graph)
    with tempfile.TemporaryDirectory() as folder:
        classes = extract(arguments.data / SAMPLE, arguments.images, Path(folder))
        rows = deploy(graph, options.preprocessing, classes, Path(folder))
    print(markdown(("image", "class", "interpreter", "Python", "C++", "integers equal"), [
        [row["image"], *(f"{row[name]}" for name in ("class", "interpreter", "python", "cpp")),
         "yes" if row["equal"] else "NO"] for row in rows
    ]))  # fmt: skip
    print(f"\nwrote {write_results('nvidia_int4', {'predicted': predicted, 'images': rows})}")
    right = all(row["equal"] and row["class"] == row["interpreter"] == row["python"] == row["cpp"] for row in rows)
    return 0 if right else 1


def predictions(graph: Graph) -> list[dict[str, Any]]:
    """Images a second on a T4 by batch, beside what NVIDIA measured.

    The bits are those of the network that `benchmarks.gpu_model` predicts with random weights.
    """
    random = in_form("resnet50", NVIDIAS)
    assert [(n.name, n.type.dtype, n.type.shape) for n in graph] == [
        (n.name, n.type.dtype, n.type.shape) for n in random
    ]
    measured = {
        row["batch"]: row["images_per_s"]
        for row in PUBLISHED["mlperf_images_per_s"]
        if (row["gpu"], row["bits"]) == (T4.name, 4)
    }
    rows = []
    for batch in BATCHES:
        found = Whole.of(plan_storages(graph, T4_TARGET, 128, batch=batch), T4, batch)
        rows.append({"batch": batch, "ms": found.ms, "images_per_s": found.images_per_s, "nvidia": measured.get(batch)})
    print(markdown(("batch", "ms", "images/s predicted", "NVIDIA measured"), [
        [f"{row['batch']}", f"{row['ms']:.2f}", f"{row['images_per_s']:,.0f}",
         f"{row['nvidia']:,.0f}" if row["nvidia"] else ""] for row in rows
    ]), end="\n\n")  # fmt: skip
    return rows


def extract(sample: Path, count: int, folder: Path) -> dict[str, int]:
    """Images of a zip file with one folder a class, evenly over the classes: each file's name, with its class."""
    with zipfile.ZipFile(sample) as archive:
        files = sorted(name for name in archive.namelist() if not name.endswith("/"))
        classes = sorted({name.partition("/")[0] for name in files})
        chosen = [files[(2 * index + 1) * len(files) // (2 * count)] for index in range(count)]
        for name in chosen:
            (folder / Path(name).name).write_bytes(archive.read(name))
    return {Path(name).name: classes.index(name.partition("/")[0]) for name in chosen}


def deploy(graph: Graph, how: Preprocessing, classes: Mapping[str, int], folder: Path) -> list[dict[str, Any]]:
    """Both examples on a device that has the library, its JSON, the examples and the images alone.

    Args:
        graph: the network.
        how: an image becomes its input.
        classes: of the images, which lie in the folder.
        folder: of the device.
    """
    library = folder / T4_TARGET.library_name
    build_library(lower(graph, T4_TARGET), library, image=ImageInput(**asdict(how)))
    for file in ("deploy.py", "deploy.cpp", "Makefile"):
        shutil.copy(EXAMPLES / file, folder)
    run(["make", f"PYTHON={sys.executable}"], folder)
    python = [sys.executable, "deploy.py", library.name]
    shown = ["--integers", "--runs", "1"]
    rows = []
    with emulated_program(library, conditions=Conditions(checked=False)) as environment:
        by_python = answers(run([*python, *classes, *shown], folder, environment))
        for name, (class_, answer) in zip(classes, zip(classes.values(), by_python, strict=True), strict=True):
            run([*python, name, "--write-ppm", "image.ppm"], folder)
            (by_cpp,) = answers(run(["./deploy", library.name, "image.ppm", *shown], folder, environment))
            expected = interpreted(graph, how, folder / name)
            rows.append(
                {
                    "image": name,
                    "class": class_,
                    "interpreter": expected.class_,
                    "python": answer.class_,
                    "cpp": by_cpp.class_,
                    "equal": expected == answer == by_cpp,
                }
            )
    return rows


def interpreted(graph: Graph, how: Preprocessing, path: Path) -> Answer:
    """What the interpreter says of an image."""
    with Image.open(path) as image:
        sample = preprocess(image.convert("RGB"), how)
    x = interpreter.quantize_input(sample[None], graph.input_type)
    integers = interpreter.run(graph, x)[graph.output][0]
    return Answer(int(integers.argmax()), tuple(integers.tolist()))


def answers(printed: str) -> list[Answer]:
    """What an example printed, image by image."""
    found = re.findall(r"^\S+: class (\d+), logit -?[\d.]+\nintegers: ([-\d ]+)$", printed, re.MULTILINE)
    return [Answer(int(number), tuple(map(int, integers.split()))) for number, integers in found]


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a program prints."""
    print("$", *command, file=sys.stderr, flush=True)
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
