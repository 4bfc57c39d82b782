"""Which engine of an artifact to run here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tfc.artifact import Artifact
from tfc.errors import BackendUnavailable, CheckFailed, UsageError
from tfc.files import sha256_of_json
from tfc.manifest import Engine
from tfc.runtime.backends import BACKEND_NAMES, backend
from tfc.runtime.backends.base import Backend

VERIFIED, FAILED, NOT_RUN = "verified", "failed", "not run"
# Best first, where several precisions of one backend would do. Narrower types are faster where
# the hardware computes in them; fp8 has at least the peak of int8 on GPUs with both, and compiles
# to fewer kernels. ONNX Runtime's CPU provider computes in neither fp16 nor bf16: it casts.
_FASTEST = {"GPU": ("fp8", "int8", "fp16", "bf16", "fp32"), "CPU": ("int8", "fp32", "bf16", "fp16")}


@dataclass(frozen=True)
class Choice:
    """An engine of the artifact, what runs it, and what parity says of it.

    `hardware` is what it will run on: ``CPU``, or the name of a GPU. `require_verified` says that
    the caller takes none but a verified one.
    """

    name: str
    engine: Engine
    backend: Backend
    verdict: str
    hardware: str
    require_verified: bool = False


def choose_engine(
    artifact: Artifact, name: str | None = None, *, require_verified: bool = False
) -> Choice:
    """The engine called `name`, or the best one that can run here.

    Best is: verified before not verified, then by backend (TensorRT, TensorRT-RTX, ONNX Runtime),
    then by precision. An engine that failed its parity check is run only when it is named.

    Raises:
        UsageError: the artifact has no engine of that name.
        BackendUnavailable: it has no engine that can run here.
        CheckFailed: those that can run here all failed their parity check; or the engine is not
            verified, and `require_verified` asks for one that is.
    """
    choice = _best(artifact) if name is None else _named(artifact, name)
    if require_verified and choice.verdict != VERIFIED:
        raise CheckFailed(
            f"engine {choice.name} is not verified (parity: {choice.verdict}), and only a verified"
            " one may run",
            where=str(artifact.path),
            fix=f"Check it with: tfc verify {artifact.path} --engine {choice.name}"
            if choice.verdict == NOT_RUN
            else "Build one in a higher precision, and check it with: tfc verify",
        )
    return replace(choice, require_verified=require_verified)


def _best(artifact: Artifact) -> Choice:
    able, reasons = _able(artifact)
    if not able:
        raise BackendUnavailable(
            f"no engine of this artifact can run here{': ' if reasons else ''}{'; '.join(reasons)}",
            where=str(artifact.path),
            fix=f"Build one on this machine with: tfc build-engine {artifact.path}",
        )
    allowed = [choice for choice in able if choice.verdict != FAILED]
    if not allowed:
        raise CheckFailed(
            f"every engine that can run here failed tfc verify:"
            f" {', '.join(choice.name for choice in able)}",
            where=str(artifact.path),
            fix="Build one in a higher precision, or name one to run it anyway",
        )
    return min(allowed, key=_rank)


def verdict_of(artifact: Artifact, name: str) -> str:
    """What parity says of the engine: `not run` too where it was built again since."""
    verdict = artifact.manifest.verdicts.get(name)
    engine = artifact.manifest.engines[name]
    if verdict is None or verdict.engine_sha256 != artifact.engine_sha256(engine):
        return NOT_RUN
    return verdict.verdict


def _named(artifact: Artifact, name: str) -> Choice:
    engines = artifact.manifest.engines
    if name not in engines:
        names = ", ".join(engines)
        raise UsageError(
            f"this artifact has no engine '{name}'",
            where=str(artifact.path),
            fix=f"Choose one of: {names}"
            if names
            else f"Build one with: tfc build-engine {artifact.path}",
        )
    runs_it = backend(engines[name].backend)
    hardware = runs_it.availability().hardware
    return Choice(name, engines[name], runs_it, verdict_of(artifact, name), hardware)


def _able(artifact: Artifact) -> tuple[list[Choice], list[str]]:
    """The engines that can run here, and for each other one why it cannot."""
    able: list[Choice] = []
    reasons: list[str] = []
    for name, engine in artifact.manifest.engines.items():
        if engine.backend not in BACKEND_NAMES:
            reasons.append(f"{name}: this tfc has no backend '{engine.backend}'")
            continue
        choice = _named(artifact, name)
        found = choice.backend.availability()
        if found.can_run:
            able.append(choice)
        else:
            reasons.append(f"{name}: {found.why_not_run.partition('. ')[0]}")
    return able, reasons


def _rank(choice: Choice) -> tuple[bool, int, int]:
    order = _FASTEST["CPU" if choice.hardware == "CPU" else "GPU"]
    precision = choice.engine.precision
    return (
        choice.verdict != VERIFIED,
        BACKEND_NAMES.index(choice.engine.backend),
        order.index(precision) if precision in order else len(order),
    )


def identity_of(artifact: Artifact, choice: Choice) -> dict[str, str]:
    """What tells a chosen engine, with its tokenizer and its labels, from others."""
    manifest = artifact.manifest
    read_with = [manifest.task, manifest.preprocess, manifest.images, manifest.audio]
    preprocess = [manifest.preprocess, *(manifest.ensemble.preprocess if manifest.ensemble else [])]
    tokenizers = [each.tokenizer if each is not None else "" for each in preprocess]
    return {
        "name": choice.name,
        "sha256": artifact.engine_sha256(choice.engine),
        "reads_and_says": sha256_of_json([repr(read_with), *map(artifact.sha256, tokenizers)]),
        "hardware": choice.hardware,
    }
