"""tfc, the Transformer compiler: from a fine-tuned checkpoint to a verified, fast engine.

The functions are the commands: `tfc.build_engine(artifact, precision="fp16")` is
`tfc build-engine ARTIFACT --fp16`. Everything is loaded when it is first used; importing tfc
imports none of torch, transformers, onnx, onnxruntime and tensorrt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.artifact import Artifact
    from tfc.errors import TfcError
    from tfc.runtime.jobs import run_job
    from tfc.runtime.session import Session
    from tfc.steps.benchmark.bench import bench
    from tfc.steps.build import build_engine
    from tfc.steps.export_module import export, export_module
    from tfc.steps.optimize import optimize
    from tfc.steps.report import report
    from tfc.steps.stack import second_stage, stack_features
    from tfc.steps.verification.verify import verify
    from tfc.steps.vocabulary.trim import trim_vocab

_WHERE = {
    "Artifact": "tfc.artifact",
    "Session": "tfc.runtime.session",
    "TfcError": "tfc.errors",
    "bench": "tfc.steps.benchmark.bench",
    "build_engine": "tfc.steps.build",
    "export": "tfc.steps.export_module",
    "export_module": "tfc.steps.export_module",
    "optimize": "tfc.steps.optimize",
    "report": "tfc.steps.report",
    "run_job": "tfc.runtime.jobs",
    "second_stage": "tfc.steps.stack",
    "stack_features": "tfc.steps.stack",
    "trim_vocab": "tfc.steps.vocabulary.trim",
    "verify": "tfc.steps.verification.verify",
}

__all__ = [
    "Artifact",
    "Session",
    "TfcError",
    "bench",
    "build_engine",
    "export",
    "export_module",
    "optimize",
    "report",
    "run_job",
    "second_stage",
    "stack_features",
    "trim_vocab",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tfc' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
