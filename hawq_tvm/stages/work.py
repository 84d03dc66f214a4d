"""What every stage works on: a run, what was asked of it, and the network and samples where they are at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hawq_tvm.backends.pytorch.float_module import FloatModule
from hawq_tvm.backends.tvm.cuda.emulated import why_not_here
from hawq_tvm.backends.tvm.host import default_threads, why_not_run
from hawq_tvm.core import interpreter
from hawq_tvm.core.codebook import WeightFormat
from hawq_tvm.core.devices import Device
from hawq_tvm.core.errors import DataError
from hawq_tvm.core.given import stored_bits_of
from hawq_tvm.core.ir import Array, Graph
from hawq_tvm.core.quantizer import LayerWeights
from hawq_tvm.core.reporter import Reporter
from hawq_tvm.core.specs import BitConfig
from hawq_tvm.core.targets import DEFAULT_TARGET, Target, find_target
from hawq_tvm.posttraining.walk import PIECE, samples_that_fit
from hawq_tvm.runs.artifacts import Artifacts
from hawq_tvm.runs.golden import read_golden
from hawq_tvm.runs.rundir import Run
from hawq_tvm.settings import Settings
from hawq_tvm.sources.data import batches
from hawq_tvm.sources.models import LoadedModel
from hawq_tvm.sources.samples import Data

_BATCH_ELEMENTS = 8 * 3 * 224 * 224  # input elements run at once, so that memory does not grow with the image

COMPARE_SAMPLES = 64
"""Evaluation samples that `compare` measures losses on, unless it is told how many."""


class Work:
    """A run in the making.

    Attributes:
        also: further GPUs that the library is to hold machine code for.
        device: where `benchmark` times the library; None for this machine.
        rounded_alone: each layer's weights rounded by itself, by format, once a metric or a search has asked for them.
        compare_samples: evaluation samples at most that `compare` holds metrics to.
        asked_samples: whether `verify` was told how many samples to compare: an emulated GPU then gets them all,
            however long that takes.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        *,
        target: Target | str = DEFAULT_TARGET,
        model: LoadedModel | None = None,
        data: Data | None = None,
        given: BitConfig | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Take up a run.

        Args:
            run: open for writing.
            settings: what is asked for.
            target: what is compiled for, timed and verified.
            model: needed by `capture` alone.
            data: needed by the stages that look at samples.
            given: bits that are taken as they are; None lets the program allocate them.
            reporter: told of stages.
        """
        self.run = run
        self.settings = settings
        self.target = find_target(target) if isinstance(target, str) else target
        self.model = model
        self.given = given
        self.reporter = reporter or Reporter()
        self.artifacts = Artifacts(run)
        self.also: tuple[Target, ...] = ()
        self.device: Device | None = None
        self.asked_samples = False
        self.compare_samples = COMPARE_SAMPLES
        self.rounded_alone: Mapping[str, Mapping[WeightFormat, LayerWeights]] | None = None
        self._data = data

    @property
    def data(self) -> Data:
        if self._data is None:
            raise DataError("this run's samples are not at hand; name them with --data")
        return self._data

    @property
    def has_data(self) -> bool:
        """Whether samples are at hand."""
        return self._data is not None

    @property
    def data_key(self) -> Mapping[str, Any] | None:
        """What tells these samples from others; where none are at hand, that of those the run was made with."""
        if self._data is None:
            key: Mapping[str, Any] | None = self.run.manifest.get("data", {}).get("key")
            return key
        return self._data.key

    @property
    def can_calibrate(self) -> bool:
        """Whether the samples at hand are those that the run was made with; others are for measuring."""
        stored = self.run.manifest.get("data")
        key = stored.get("key") if isinstance(stored, dict) else None
        return self._data is not None and self._data.key == key

    @property
    def why_not_here(self) -> str | None:
        """Why the target's library does not run on this machine: its GPU or CPU is not here. None where it runs."""
        info = self.artifacts.library_info(self.target)
        if info.gpu is None:
            return why_not_run(self.target.name, info.architecture, info.instruction_sets)
        return why_not_here(Path(self.run.name, self.target.library_name), info.gpu)

    @property
    def threads(self) -> int:
        return self.settings.threads or default_threads()

    @cached_property
    def float_module(self) -> FloatModule:
        return FloatModule(self.artifacts.float_graph)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers with weights, in the network's order."""
        return tuple(layer.name for layer in self.artifacts.float_graph.layers)

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to allocate."""
        return self.given is None and len(set(self.settings.bits)) > 1

    def as_stored(self, bits: BitConfig) -> BitConfig:
        """The same bits of layers, with the bits of stored values that the settings say.

        What they do not say is as the given configuration has it, where there is one.
        """
        base, said = self.given or bits, self.settings.residual_bits
        stored = stored_bits_of(self.settings.stored_bits, self.artifacts.float_graph)
        residual = base.residual if said is None else said
        return replace(bits, residual=residual, stored={**base.stored, **stored})

    def batch_size(self, most: int = 64) -> int:
        """Samples to run at once."""
        return int(np.clip(_BATCH_ELEMENTS // np.prod(self.artifacts.float_graph.input_shape), 1, most))

    @property
    def rounding_samples(self) -> int:
        """On how many calibration samples weights are rounded: all whose values fit into memory together."""
        return min(len(self.data.calibration), samples_that_fit(self.artifacts.float_graph))

    def rounding_pieces(self) -> Iterator[Tensor]:
        """Those samples, float32 [N, ...], in the pieces that they pass in."""
        for batch in batches(self.data.calibration, PIECE, limit=self.rounding_samples):
            yield batch.images

    def golden_input(self, graph: Graph) -> Array:
        """One input in integers [1, ...]: the first evaluation sample; without samples at hand, the golden one."""
        if self._data is not None:
            sample = self._data.evaluation.sample(0)[0][None]
            return interpreter.quantize_input(sample.astype(np.float32), graph.input_type)
        return read_golden(self.run)[graph.input_name]

    def integer_batches(self, graph: Graph, count: int) -> Iterator[Array]:
        """The first `count` evaluation samples in integers; without samples at hand, the golden input."""
        if self._data is None:
            yield self.golden_input(graph)
            return
        for batch in batches(self._data.evaluation, self.batch_size(), limit=count):
            yield interpreter.quantize_input(batch.images.numpy(), graph.input_type)
