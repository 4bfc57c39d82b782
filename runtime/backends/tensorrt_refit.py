"""Other weights in a built plan: seconds instead of a build, on the GPU that the plan is for.

Written against the API of TensorRT 10.13 to 11.4, which tests check member by member. It has not
run yet: TensorRT itself builds and refits on a GPU only.
"""

from __future__ import annotations

from pathlib import Path

from tfc.errors import BackendUnavailable
from tfc.files import write_atomically
from tfc.runtime.backends.tensorrt_errors import collecting_logger, first_error
from tfc.runtime.backends.tensorrt_flavors import Flavor
from tfc.runtime.backends.tensorrt_runner import engine_from_plan


def refit_plan(flavor: Flavor, plan: Path, model: Path, target: Path) -> None:
    """Write `plan` with the weights of the ONNX file `model` to `target`.

    Raises:
        BackendUnavailable: TensorRT does not replace all of them.
        BadArtifact: the plan is damaged.
    """
    trt = flavor.load()
    logger = collecting_logger(trt)
    engine = engine_from_plan(flavor, trt, logger, plan)
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    found = parser_refitter.refit_from_file(str(model)) and not refitter.get_missing_weights()
    if not found or not refitter.refit_cuda_engine():
        raise BackendUnavailable(
            f"{flavor.label} cannot put these weights into a built engine: "
            f"{first_error(trt, logger)}",
            where=str(model),
            fix="Build the engine without --refit",
        )
    memory = engine.serialize()
    write_atomically(target, bytes(memory))
