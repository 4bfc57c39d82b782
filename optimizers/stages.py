"""The passes in their order: four stages, and the place of a user's own passes among them.

A pass of a user's package runs at the end of the stage that its attribute `stage` names (`raise` if
it has none), for the targets in its attribute `targets` (all if it has none).
`tfc.optimizers.user_passes` finds them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tfc.errors import UsageError
from tfc.optimizers.cleaning import Fold
from tfc.optimizers.einsum import EinsumToMatMul
from tfc.optimizers.lowering.attention_mask import ExpandAttentionMask
from tfc.optimizers.lowering.explicit_attention import ExplicitAttention
from tfc.optimizers.lowering.flat_attention import FlatAttention
from tfc.optimizers.lowering.fold_scale import FoldScale
from tfc.optimizers.lowering.gemm import GemmToMatMul
from tfc.optimizers.lowering.pack_qkv import PackQKV
from tfc.optimizers.lowering.position_products import PositionProducts
from tfc.optimizers.lowering.remove_padding import RemovePadding
from tfc.optimizers.lowering.shared_slice import SharedSlice
from tfc.optimizers.lowering.skip_layer_norm import SkipLayerNorm
from tfc.optimizers.lowering.standard_ops import InlineCanonicalOps
from tfc.optimizers.lowering.sum_layer_norm import SumLayerNorm
from tfc.optimizers.lowering.unread_positions import DropUnreadPositions
from tfc.optimizers.merged_heads import SplitMergedHeads
from tfc.optimizers.opset import UnwrapSoftmax
from tfc.optimizers.passes import Fusion, FusionPass, Pass
from tfc.optimizers.raising.add_layer_norm import AddLayerNorm
from tfc.optimizers.raising.attention import Attention
from tfc.optimizers.raising.attention_mask import ReduceAttentionMask
from tfc.optimizers.raising.gelu import Gelu
from tfc.optimizers.raising.layer_norm import LayerNorm
from tfc.optimizers.raising.rms_norm import RMSNorm
from tfc.optimizers.raising.single_heads import SingleHeads
from tfc.optimizers.reduced_axes import KeepReducedAxes
from tfc.optimizers.shape_parts import TakePartsOfShapes
from tfc.optimizers.shapes import InferShapes, ShapesFromInputs

CLEAN: tuple[Pass, ...] = (
    Fold(),
    UnwrapSoftmax(),
    FusionPass(EinsumToMatMul()),
    InferShapes(),
    ShapesFromInputs(),
    TakePartsOfShapes(),
    SplitMergedHeads(),
    KeepReducedAxes(),
    Fold("fold constants again"),
)
RECOGNISE: tuple[Pass, ...] = (
    FusionPass(LayerNorm()),
    FusionPass(RMSNorm()),
    FusionPass(Gelu()),
    FusionPass(SingleHeads()),
)
RAISE: tuple[Pass, ...] = (
    FusionPass(Attention()),
    ReduceAttentionMask(),
    FusionPass(AddLayerNorm()),
)
# ONNX Runtime's providers run different forms fastest. perf/cpu_forms.py measures the CPU's; what
# CUDA gets was not measured: no GPU was at hand.
LOWER: Mapping[str, tuple[Pass, ...]] = {
    "onnxruntime": (
        FusionPass(DropUnreadPositions()),
        FusionPass(FlatAttention()),
        FusionPass(SumLayerNorm()),
        ExpandAttentionMask(),
        InlineCanonicalOps(),
    ),
    "onnxruntime-cuda": (
        FusionPass(DropUnreadPositions()),
        FusionPass(FlatAttention()),
        FusionPass(SkipLayerNorm()),
        ExpandAttentionMask(),
        InlineCanonicalOps(),
    ),
    "tensorrt": (
        FusionPass(DropUnreadPositions()),
        FusionPass(GemmToMatMul()),
        FusionPass(FoldScale()),
        FusionPass(PositionProducts()),
        FusionPass(SharedSlice()),
        FusionPass(PackQKV()),
        FusionPass(ExplicitAttention()),
        InlineCanonicalOps(),
    ),
}
# At the end of the lowering where it is asked for: it pays where batches have padding, and the
# provider of CUDA has kernels for residual norms that it does not look into.
UNPAD: Mapping[str, Pass] = {"onnxruntime": FusionPass(RemovePadding())}
TARGETS = tuple(LOWER)
CLEANING, RECOGNISING, RAISING, LOWERING = "clean", "recognise", "raise", "lower"


@dataclass(frozen=True)
class Stage:
    """Some passes that belong together."""

    name: str
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class Selection:
    """What a caller adds to the passes, and which of them are to run.

    `only` and `skip` are names of passes; an empty `only` is all of them. With `remove_padding`
    linear layers run on packed tokens.
    """

    extra: tuple[Pass, ...] = ()
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    remove_padding: bool = False


def stages_of(target: str, selection: Selection | None = None) -> tuple[Stage, ...]:
    """The stages for a target.

    Raises:
        UsageError: there is no such target, no pass of a name that was given, or a user's pass
            names a stage that there is not; or padding cannot be removed for the target.
    """
    if target not in LOWER:
        raise UsageError(f"there is no target '{target}'", fix=f"Choose {' or '.join(TARGETS)}")
    chosen = selection or Selection()
    lower = (*LOWER[target], *_unpad(target)) if chosen.remove_padding else LOWER[target]
    own = {CLEANING: CLEAN, RECOGNISING: RECOGNISE, RAISING: RAISE, LOWERING: lower}
    stages = tuple(
        Stage(name, (*passes, *_extra_of(chosen.extra, name, target)))
        for name, passes in own.items()
    )
    _check_names([*chosen.only, *chosen.skip], stages)
    only, skip = _plain(chosen.only), _plain(chosen.skip)
    return tuple(
        Stage(
            stage.name,
            tuple(
                step
                for step in stage.passes
                if (not only or _key(step.name) in only) and _key(step.name) not in skip
            ),
        )
        for stage in stages
    )


def _unpad(target: str) -> tuple[Pass, ...]:
    if target not in UNPAD:
        raise UsageError(
            f"padding is removed for the target {' or '.join(UNPAD)} only, and this is {target}",
            fix="Leave --remove-padding out, or build for ONNX Runtime's CPU provider",
        )
    return (UNPAD[target],)


def _extra_of(extra: Sequence[Pass], stage: str, target: str) -> list[Pass]:
    found = []
    for step in extra:
        own: Pass | Fusion = step.fusion if isinstance(step, FusionPass) else step
        wanted = getattr(own, "stage", RAISING)
        if wanted not in (CLEANING, RECOGNISING, RAISING, LOWERING):
            raise UsageError(
                f"the pass '{step.name}' wants to run in the stage '{wanted}', which there is not",
                fix=f"Choose {CLEANING}, {RECOGNISING}, {RAISING} or {LOWERING}",
            )
        if wanted == stage and target in getattr(own, "targets", TARGETS):
            found.append(step)
    return found


def _check_names(names: Sequence[str], stages: Sequence[Stage]) -> None:
    known = {_key(step.name): step.name for stage in stages for step in stage.passes}
    for name in names:
        if _key(name) not in known:
            raise UsageError(
                f"there is no pass '{name}'", fix=f"Choose among: {', '.join(known.values())}"
            )


def _plain(names: Collection[str]) -> set[str]:
    return {_key(name) for name in names}


def _key(name: str) -> str:
    """Names are compared without case, and a dash is as good as a space."""
    return name.lower().replace("-", " ")
