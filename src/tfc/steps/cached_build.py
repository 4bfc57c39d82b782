"""A build that looks first whether the same thing was built before."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tfc.artifact import Artifact
from tfc.build_cache import BuildCache
from tfc.errors import TfcError
from tfc.files import DATA_SUFFIX, sha256_of_json
from tfc.runtime.backends.base import Availability, Backend, BuildOptions, Built, Inputs, Profile
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.runtime.backends.tensorrt_refit import refit_plan
from tfc.steps.precision_plans import architecture_of
from tfc.steps.record import versions_of

_FORMAT = 1  # of the key and of what is kept


@dataclass(frozen=True)
class Builder:
    """Builds the graphs of one artifact with one backend.

    `cache` is None where nothing is to be kept or taken, and for backends whose builds take a
    moment.
    """

    artifact: Artifact
    chosen: Backend
    available: Availability
    cache: BuildCache | None

    def build(
        self, model: str, target: Path, inputs: Inputs, profile: Profile, options: BuildOptions
    ) -> tuple[Built, str]:
        """The engine of the artifact's file `model` at `target`; what is to say of the cache."""
        source = self.artifact.file(model)
        if self.cache is None:
            return self.chosen.build(source, target, inputs, profile, options), ""
        key = self._key(model, inputs, profile, options)
        if built := self.cache.restore(key, target):
            return built, f"taken from {self.cache.folder}: the same was built before"
        timed, of_timing = self._timed(options)
        of_any = self._key(model, inputs, profile, options, weights=False) if options.refit else ""
        if of_any and (built := self._refitted(of_any, source, target)):
            self.cache.keep(key, target, built)
            return built, "an engine of this architecture, with the weights replaced"
        built = self.chosen.build(source, target, inputs, profile, timed)
        failed = self.cache.keep(key, target, built)
        if of_any:
            self.cache.keep(of_any, target, built)
        return built, f"{failed or f'kept in {self.cache.folder} for the next build'}; {of_timing}"

    def _timed(self, options: BuildOptions) -> tuple[BuildOptions, str]:
        """The options with the kept times of kernels, where the backend times kernels."""
        assert self.cache is not None
        flavor = FLAVORS[self.chosen.name]
        if not flavor.times_kernels:
            return options, f"{flavor.label} times no kernels while it builds"
        name = re.sub(r"[^\w.-]+", "-", f"{self.available.version}-{self.available.hardware}")
        timings = self.cache.timings(f"{self.chosen.name}-{name}")
        known = "with kernel times of earlier builds" if timings.read() else "all kernels timed"
        return dataclasses.replace(options, timings=timings), known

    def _refitted(self, key: str, source: Path, target: Path) -> Built | None:
        """The engine under `key` with the weights of `source`; None where it does not take them."""
        assert self.cache is not None
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / target.name
            built = self.cache.restore(key, plan)
            if built is None:
                return None
            try:
                refit_plan(FLAVORS[self.chosen.name], plan, source, target)
            except TfcError:
                return None  # a build gives the same engine, and takes longer
        return built

    def _graph(self, model: str, *, weights: bool) -> list[str]:
        """What tells a graph from others, with or without the values of its weights."""
        if weights:
            return [self.artifact.sha256(model), self.artifact.sha256(model + DATA_SUFFIX)]
        import onnx_ir as ir

        return [architecture_of(ir.load(self.artifact.file(model)))]

    def _key(
        self,
        model: str,
        inputs: Inputs,
        profile: Profile,
        options: BuildOptions,
        *,
        weights: bool = True,
    ) -> str:
        plain = {
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(options)
            if field.name not in ("on_progress", "timings", "profiles")
        }
        return sha256_of_json(
            {
                "format": _FORMAT,
                "tfc": versions_of(),
                "graph": self._graph(model, weights=weights),
                "inputs": {n: [dtype, list(axes)] for n, (dtype, axes) in inputs.tensors.items()},
                "profiles": [p.as_json() for p in options.profiles or (profile,)],
                "options": {name: repr(value) for name, value in plain.items()},
                "backend": [self.chosen.name, self.available.version],
                "hardware": self.available.hardware,
            }
        )
