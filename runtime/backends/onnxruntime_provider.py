"""Which execution provider of ONNX Runtime works here: CUDA where it really does, else the CPU.

`onnxruntime-gpu` lists CUDA on every machine, with or without a GPU, and falls back to the CPU
without an error where a CUDA library is missing. So the provider is asked to run one node.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# An ONNX model (IR version 8, opset 13) of one Identity node, float[1] `x` → float[1] `y`. It is
# kept as bytes because the runtime does not import onnx.
IDENTITY_MODEL = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01'
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00"
    b"\x10\r"
)


@dataclass(frozen=True)
class Provider:
    """An execution provider by ONNX Runtime's name, and the hardware that it runs on."""

    name: str
    hardware: str

    @property
    def names(self) -> list[str]:
        """What a session is given: this provider, then the CPU for what it has no kernel for."""
        return [self.name] if self.name == CPU else [self.name, CPU]


@functools.cache
def best_provider() -> Provider:
    """The provider to use in this process; looks once."""
    import onnxruntime

    from tfc.runtime.gpu import gpus

    if CUDA not in onnxruntime.get_available_providers():
        return Provider(CPU, "CPU")
    found = gpus()
    if found and _runs(onnxruntime, cuda := Provider(CUDA, found[0].name)):
        return cuda
    return Provider(CPU, "CPU")


def _runs(onnxruntime: Any, provider: Provider) -> bool:
    """Whether `provider` loads and runs a node. ONNX Runtime prints on stderr why it does not."""
    import numpy as np

    if provider.name == CUDA and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    try:
        session = onnxruntime.InferenceSession(IDENTITY_MODEL, providers=provider.names)
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception:  # ONNX Runtime's errors share no base class; whatever it is, it cannot run
        return False
    return provider.name in session.get_providers()
