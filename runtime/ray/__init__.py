"""Batch jobs over many machines: an artifact's engine in the actors of Ray Data.

`predict_dataset` adds predictions to a Ray dataset, wherever it comes from and goes to;
`tfc.runtime.ray.job.run_ray_job` is ``tfc run --ray``: Parquet files in, a folder of Parquet files
out. Both need ``pip install 'tfc[ray]'``; importing this module does not load Ray.

Every worker is an actor with a `Session`: it loads the engine once, without torch. The artifact,
and for a job its inputs and its output, must be under the same path on every machine, as on a
shared file system. When a worker dies, Ray starts it again, and runs its rows again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfc.runtime.ray.dataset import predict_dataset

__all__ = ["predict_dataset"]


def __getattr__(name: str) -> Any:
    if name == "predict_dataset":
        from tfc.runtime.ray.dataset import predict_dataset

        return predict_dataset
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
