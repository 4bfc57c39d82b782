"""Is an exported graph clean and standard? Asked of the file, before anything is built on it."""

from __future__ import annotations

from pathlib import Path

import onnx

from tfc.errors import CheckFailed, first_line
from tfc.manifest import BATCH, ENCODER_SEQUENCE, PAST, SEQUENCE, TOTAL, Signature

# The names of axes that mean the same in every artifact. A module's own axes are its caller's.
AXES = frozenset({BATCH, SEQUENCE, ENCODER_SEQUENCE, PAST, TOTAL})


def check_standard(path: Path, signature: Signature, where: str) -> None:
    """Refuse a graph that ONNX's own full check refuses, or that other runtimes cannot take.

    That is one with operators or functions of its own, or with an output whose axes have neither
    a size nor the name of an input's axis.

    Raises:
        CheckFailed: what is wrong with it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _not_standard(f"ONNX's checker refuses it ({first_line(error)})", where) from error
    model = onnx.load(str(path), load_external_data=False)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign or model.functions:
        named = ", ".join(sorted(foreign)) or model.functions[0].name
        raise _not_standard(f"it has operators that are not standard ({named})", where)
    known = AXES | {str(axis) for spec in signature.inputs for axis in spec.shape}
    for spec in signature.outputs:
        unknown = [axis for axis in spec.shape if isinstance(axis, str) and axis not in known]
        if unknown:
            raise _not_standard(
                f"the output {spec.name} has an axis of unknown size, '{unknown[0]}'", where
            )


def _not_standard(what: str, where: str) -> CheckFailed:
    return CheckFailed(
        f"the exported graph is not clean: {what}",
        where=where,
        fix="Report this model; nothing was written",
    )
