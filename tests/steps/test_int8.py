"""int8 from end to end: data, calibration, budget, engines, and what `verify` says of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import tfc
from tfc.cli import cli
from tfc.errors import ContractNotReached, UsageError
from tfc.kernel_report import KernelRecord
from tfc.manifest import Task
from tfc.onnx_files import save_onnx
from tfc.optimizers.graph import constant
from tfc.optimizers.precision.int8.narrow import INT8
from tfc.optimizers.precision.int8.ranges import Range
from tfc.runtime.backends import why_no_kernels
from tfc.runtime.backends.base import Availability
from tfc.runtime.backends.tensorrt_errors import build_refusal
from tfc.runtime.backends.tensorrt_flavors import FLAVORS
from tfc.steps.flops import Product
from tfc.steps.int8 import calibration, speed
from tfc.steps.int8.accuracy import Accuracy
from tfc.steps.int8.calibration import calibration_file, movement
from tfc.steps.int8.notes import int8_notes
from tfc.steps.int8.prepare import int8_step
from tfc.steps.int8.search import Bench
from tfc.steps.optimize import optimized_file
from tfc.steps.precision_audit import check_precision, judge_products
from tfc.steps.verification.agreement import agreement_of, too_many_differ

pytestmark = pytest.mark.ort
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)
TEXTS = Path("examples/data/support_intents/eval.jsonl")
CPU = "onnxruntime-int8"
# A random model decides by a hair: what a trained one keeps to half a point moves it more.
LOOSE = 0.2


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 real texts, with labels of the tiny model that are as good as random."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()[:24]
    labels = ["cancel", "refund", "other"]
    texts = [json.loads(line)["text"] for line in lines]
    labelled = [{"text": text, "label": labels[n % 3]} for n, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("int8") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def _built(tmp_path_factory: pytest.TempPathFactory, _tiny_artifact: Path, rows: Path) -> Path:
    folder = tmp_path_factory.mktemp("built") / "artifact"
    shutil.copytree(_tiny_artifact, folder)
    build(folder, calib=rows)
    return folder


@pytest.fixture
def built(_built: Path, tmp_path: Path) -> tfc.Artifact:
    """A copy of an artifact with an int8 engine in the static form for the CPU."""
    return tfc.Artifact.open(shutil.copytree(_built, tmp_path / "built"))


def build(artifact: Any, **options: Any) -> Any:
    """An engine in the static form for the CPU, with a loose budget."""
    given = {"backend": "onnxruntime", "max_drop": LOOSE, "int8_form": "static", **options}
    return tfc.build_engine(artifact, precision="int8", **given)


def test_without_data_there_is_no_int8(tiny_artifact: Path) -> None:
    ended = CliRunner().invoke(cli, ["build-engine", str(tiny_artifact), "--int8"])
    assert ended.exit_code == 2
    said = " ".join(ended.stderr.split())
    assert "int8 needs real text to find the ranges of its activations, and none was given" in said
    assert "Random tokens are no substitute: their ranges do not fit" in said


def test_options_of_a_calibration_are_for_int8(tiny_artifact: Path, rows: Path) -> None:
    with pytest.raises(UsageError) as caught:
        tfc.build_engine(tiny_artifact, precision="fp16", calib=rows)
    assert caught.value.what == "calibration is for int8 and fp8, and the precision is fp16"
    with pytest.raises(UsageError) as caught:
        tfc.build_engine(tiny_artifact, precision="int8", calib=rows, calib_method="mean")
    assert caught.value.what == "int8 has no method 'mean'"
    with pytest.raises(UsageError) as caught:
        tfc.build_engine(tiny_artifact, precision="int8", calib=rows, max_drop=1.5)
    assert caught.value.what == "max_drop 1.5 is not possible"


def test_a_model_that_generates_is_refused(make_artifact: Any, rows: Path) -> None:
    artifact = make_artifact(task=Task("text-generation"))
    with pytest.raises(UsageError) as caught:
        build(artifact, calib=rows)
    assert caught.value.what == (
        "int8 is for models that read text and answer at once, and this one's task is "
        "text-generation"
    )


def test_a_cpu_engine_in_the_faster_form(
    tiny_artifact: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.05)
    arguments = ["build-engine", str(tiny_artifact), "--int8", "--calib", str(rows)]
    more = ["--backend", "onnxruntime", "--label-column", "label", "--max-drop", "20%"]
    ended = CliRunner().invoke(cli, [*arguments, *more], env={"COLUMNS": "80"})
    assert ended.exit_code == 0, ended.output
    said = " ".join(ended.stdout.split())
    assert "products in int8" in said
    assert "times as fast as fp32 at 32 x 128 tokens: dynamic " in said
    assert "calibrated on 24 rows (" in said
    assert max(map(len, ended.stdout.splitlines())) <= 80
    artifact = tfc.Artifact.open(tiny_artifact)
    result = int8_step(artifact, "onnxruntime", "model").result
    assert result["accuracy"]["metric"] == "accuracy"
    assert result["form"] in result["forms"]["times_fp32"]
    assert {site["why"] for site in result["left"]} >= {"once for each text"}
    again = CliRunner().invoke(cli, [*arguments, *more])
    assert f"Engine {CPU} is up to date" in again.stdout


def test_verify_run_and_inspect(built: tfc.Artifact, rows: Path) -> None:
    result = tfc.verify(built, engines=[CPU], data=rows)
    (found,) = result.verdicts
    assert found.verdict == "verified", found.reason
    assert found.tolerance is not None
    assert found.tolerance.source == (
        "2 × the error of the fp32 graph with the same products in int8"
    )
    record = built.manifest.verdicts[CPU]
    assert record.tolerance["agreement"] == pytest.approx(1 - LOOSE, abs=LOOSE)
    assert record.outputs["logits"]["agreement"] == found.agreement.value
    assert found.agreement.distance < 1e-3 * found.agreement.room  # the same integers
    with tfc.Session.load(built.path, engine=CPU) as session:
        assert len(list(session.predict(["hello", "where is my parcel?"]))) == 2
    ended = CliRunner().invoke(cli, ["inspect", str(built.path), "--engine", CPU])
    assert "12 of 14 products in int8" in ended.stdout


# Which input of the integer product, and what becomes of it.
FAULTS: dict[str, tuple[int, Any]] = {
    "scale": (3, lambda array: array * 1.2),
    "bias": (6, lambda array: array * 0),
    "columns": (1, lambda array: np.roll(array, 1, axis=1)),
}


def plant(artifact: tfc.Artifact, file: str, fault: str, module: str) -> str:
    """Spoil the first product of such a module in a graph, hash and all; the product's name."""
    model = ir.load(artifact.file(file))
    products = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    place, spoil = FAULTS[fault]
    first = next(n for n in products if module in n.metadata_props["tfc.module"])
    value = first.inputs[place]
    array = np.asarray(constant(value)).copy()
    changed = spoil(array)
    value.const_value = ir.tensor(changed.astype(array.dtype), name=value.name)
    with artifact.change() as change:
        save_onnx(model, change.path(file))
    return str(first.name)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_engine_is_found(built: tfc.Artifact, rows: Path, fault: str) -> None:
    plant(built, built.manifest.engines[CPU].files["model"], fault, "output.dense")
    (found,) = tfc.verify(built, engines=[CPU], data=rows).verdicts
    assert found.verdict == "failed"
    assert "from the same products quantised anew, which are" in found.reason


@pytest.mark.parametrize("stage", ["precision", "engine file"])
def test_bisecting_names_the_wrong_product(built: tfc.Artifact, rows: Path, stage: str) -> None:
    """Every product is off from fp32; the wrong one is off from the same product made anew."""
    module = "layer.1.output.dense"
    if stage == "precision":
        node = plant(built, optimized_file("onnxruntime", precision="int8"), "scale", module)
        build(built, calib=rows)
    else:
        node = plant(built, built.manifest.engines[CPU].files["model"], "scale", module)
    result = tfc.verify(built, engines=[CPU], data=rows, bisect=True, relations=False)
    (bisection,) = result.bisections
    first, reproducer = bisection.found, bisection.reproducer
    assert first is not None
    assert reproducer is not None
    assert (first.stage, first.node, first.layer) == (stage, node, 1)
    assert first.changed.endswith("scale has other values")
    assert reproducer.shown


def test_the_data_is_read_once_and_a_broken_run_goes_on(
    tiny_artifact: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = tfc.Artifact.open(tiny_artifact)
    monkeypatch.setattr(calibration, "_SAVE_SECONDS", 0.0)
    seen: list[tuple[str, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "calibrating" and done == total == 2:
            raise KeyboardInterrupt

    def note(what: str, done: int, total: int) -> None:
        seen.append((what, done))

    with pytest.raises(KeyboardInterrupt):
        build(artifact, calib=rows, on_progress=stop)
    build(artifact, calib=rows, on_progress=note)
    # The first batch of the exported graph was saved; then the smoothed graph reads both.
    assert [done for what, done in seen if what == "calibrating"] == [1, 2, 0, 1, 2]
    before = artifact.sha256(calibration_file("onnxruntime"))
    seen.clear()
    build(artifact, calib=rows, calib_method="mse", on_progress=note)
    assert "calibrating" not in {what for what, _ in seen}
    assert artifact.sha256(calibration_file("onnxruntime")) == before


def test_a_budget_that_cannot_be_kept(
    tiny_artifact: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accuracy, "drop", property(lambda self: 0.01))
    with pytest.raises(ContractNotReached) as caught:
        build(tiny_artifact, calib=rows, max_drop=0.005, calib_method="min-max")
    assert caught.value.what == (
        "int8 (static) does not keep the accuracy, however few products it is used for: same "
        "labels drops by 1.00% at best (same labels as fp32: 100.00%), and 0.50% is allowed"
    )
    assert caught.value.exit_code == 3


def test_what_is_left_for_the_budget_is_named(
    tiny_artifact: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that holds with the two most sensitive products left out."""
    real = Bench.accuracy

    def accuracy(self: Bench, graph: ir.Model, what: str) -> Accuracy:
        ops = [node.op_type for node in graph.graph]
        good = ops.count("MatMulIntegerToFloat") <= 10 or "ranges" in what
        return dataclasses.replace(real(self, graph, what), agreement=float(good))

    monkeypatch.setattr(Bench, "accuracy", accuracy)
    built = build(tiny_artifact, calib=rows, max_drop=0.005)
    result = int8_step(built.artifact, "onnxruntime", "model").result
    left = [site for site in result["left"] if site["why"] == "the budget"]
    assert len(left) == 2
    assert result["sites"]["quantized"] == 10
    assert len(result["sensitivity"]) == 12
    worst = max(result["sensitivity"].values())
    assert max(site["error"] for site in left) <= worst
    note = next(note for note in built.notes if note.startswith("left in higher precision"))
    assert all(site["module"] in note for site in left)
    assert note.endswith(" of the GEMM FLOPs")


def test_a_graph_that_is_quantised_already_is_left_as_it_is(
    built: tfc.Artifact, rows: Path
) -> None:
    quantized = built.file(optimized_file("onnxruntime", precision="int8"))
    source = optimized_file("onnxruntime")
    with built.change() as change:
        change.path(source).write_bytes(quantized.read_bytes())
    result = build(built, calib=rows)
    assert result.notes == ("the graph has Q/DQ of another tool, and is left as it is",)
    assert built.file(result.engine.files["model"]).read_bytes() == quantized.read_bytes()


@needs_rtx
@pytest.mark.rtx
def test_tensorrt_compiles_int8_products_and_whole_attentions(
    tiny_artifact: Path, rows: Path
) -> None:
    result = build(tiny_artifact, backend="tensorrt-rtx", calib=rows, int8_form=None)
    audit = result.engine.audit
    assert audit["fused_attention"] == audit["wanted"]["fused_attention"] == 2
    step = int8_step(result.artifact, "tensorrt", "model")
    compiled = audit["precision"]["compiled"]
    assert compiled["int8"]["gemms"] == step.result["sites"]["quantized"]
    assert compiled["fp16"]["attentions"] == 2
    assert audit["precision"]["graph"]["int8"] == compiled["int8"]
    with pytest.raises(UsageError) as caught:
        build(tiny_artifact, backend="tensorrt-rtx", calib=rows, int8_form="dynamic")
    assert caught.value.what.startswith("TensorRT takes the ranges of activations from the graph")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_whose_kernels_are_not_what_it_is_called(precision: str) -> None:
    product = Product("fc", "encoder.fc", False, precision, 100, True)
    kernel = KernelRecord("gemm_1", "gemm", "gemm", ["fp16"], ["fp16"], "fp16", ["fc"], [""])
    with pytest.raises(ContractNotReached) as caught:
        check_precision(precision, judge_products([product], [kernel]), (), "here")
    assert caught.value.exit_code == 3
    assert caught.value.what == (
        f"1 of the 1 products that the graph has in {precision} are compiled in another precision: "
        "fc (encoder.fc) in gemm_1"
    )


@needs_rtx
@pytest.mark.rtx
def test_fp8_is_built_for_the_gpus_that_have_it(tiny_artifact: Path, rows: Path) -> None:
    arguments = ["build-engine", str(tiny_artifact), "--fp8", "--calib", str(rows)]
    more = ["--max-drop", "20%", "--backend", "tensorrt-rtx"]
    ended = CliRunner().invoke(cli, [*arguments, *more], env={"COLUMNS": "80"})
    assert ended.exit_code == 0, ended.output
    artifact = tfc.Artifact.open(tiny_artifact)
    sites = int8_step(artifact, "tensorrt", "model", "fp8").result["sites"]
    said = f"{sites['quantized']} of {sites['all']} products in fp8"
    assert said in " ".join(ended.stdout.split())
    engine = artifact.manifest.engines["tensorrt-rtx-fp8"]
    assert engine.hardware == "compute capability 8.9, 12.0"
    assert engine.audit["fused_attention"] == engine.audit["wanted"]["fused_attention"] == 2
    compiled = engine.audit["precision"]["compiled"]
    assert compiled["fp8"]["gemms"] == sites["quantized"] > 0
    assert compiled["fp16"]["attentions"] == 2
    assert engine.audit["precision"]["graph"]["fp8"] == compiled["fp8"]
    (found,) = tfc.verify(artifact, engines=["tensorrt-rtx-fp8"], data=rows).verdicts
    assert (found.verdict, found.reason[:30]) == ("not run", "TensorRT-RTX runs on NVIDIA GP")
    ended = CliRunner().invoke(cli, [*arguments, *more, "--sm", "86,89"])
    assert ended.exit_code == 2
    said = " ".join(ended.stderr.split())
    assert "fp8 needs compute capability 8.9 or later, and 8.6 is asked for" in said


def test_an_older_gpu_is_refused_by_tensorrt_for_fp8() -> None:
    """A graph with fp8 in it that is called something else is refused by the builder itself."""
    text = "[pass.cpp:1500: run_passes] Cannot compile for target(s) sm86, because the model "
    error = build_refusal(
        FLAVORS["tensorrt-rtx"], text + "contains HW-specific datatypes: fp8", Path("m.onnx"), []
    )
    assert error.what.startswith(
        "TensorRT-RTX has no kernels for a type of this graph on a GPU that it is to build for"
    )


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (Availability("onnxruntime", "1", hardware="CPU"), "onnxruntime has no fp8 products"),
        (Availability("openvino", "1", hardware="CPU"), "openvino has no fp8 products"),
        (
            Availability("tensorrt", "11", hardware="NVIDIA A10 (8.6)"),
            "fp8 needs compute capability 8.9 or later, and this machine has NVIDIA A10 (8.6)",
        ),
        (Availability("tensorrt", "11", hardware="NVIDIA L4 (8.9)"), ""),
        (Availability("tensorrt", "11", hardware="NVIDIA B200 (10.0)"), ""),
        (Availability("tensorrt-rtx", "1"), ""),
    ],
)
def test_who_has_fp8(found: Availability, why: str) -> None:
    assert why_no_kernels(found, "fp8") == why


def test_methods_of_fp8(tiny_artifact: Path, rows: Path) -> None:
    with pytest.raises(UsageError) as caught:
        tfc.build_engine(tiny_artifact, precision="fp8", calib=rows, calib_method="entropy")
    assert caught.value.what == "fp8 has no method 'entropy'"


def test_an_engine_called_fp8_whose_graph_is_not() -> None:
    product = Product("fc", "", False, "int8", 100, True)
    kernel = KernelRecord("gemm_1", "gemm", "gemm", ["int8"], ["fp16"], "int8", ["fc"], [""])
    with pytest.raises(ContractNotReached) as caught:
        check_precision("fp8", judge_products([product], [kernel]), (), "here")
    assert caught.value.what == (
        "the engine is called fp8, but the graph has none of its 1 products in fp8"
    )
    assert caught.value.exit_code == 3


def test_int8_is_for_the_cpu_in_onnxruntime() -> None:
    gpu = Availability("onnxruntime", "1", hardware="NVIDIA X")
    assert why_no_kernels(gpu, "int8") == "onnxruntime has int8 kernels for the CPU only"


def test_agreement_is_what_the_task_is_about() -> None:
    exact = [np.array([[2.0, 1, 0], [0, 1, -1]])]
    near = [np.array([[0.9, 1, 0], [0, 1, -1]])]
    labels = Task("text-classification", "single_label")
    assert agreement_of(labels, exact, near) == 0.5
    assert agreement_of(labels, exact, [np.full((2, 3), np.nan)]) == 0.0
    several = Task("text-classification", "multi_label")
    assert agreement_of(several, exact, near) == 1.0
    assert agreement_of(several, exact, [near[0] - 0.5]) == 0.0
    score = Task("text-classification", "regression")
    numbers = np.arange(6.0).reshape(6, 1)
    assert agreement_of(score, [numbers], [numbers * 2 + 1]) == pytest.approx(1.0)
    vectors = Task("feature-extraction")
    assert agreement_of(vectors, exact, [exact[0] * 3]) == pytest.approx(1.0)


def test_few_rows_are_held_against_an_engine_as_far_as_chance_goes() -> None:
    assert not too_many_differ(23 / 24, 0.995, 24)  # one of 24 by chance: 11 %
    assert too_many_differ(22 / 24, 0.995, 24)  # two: 0.6 %
    assert not too_many_differ(0.99, 0.995, 200)  # two of 200: 26 %
    assert too_many_differ(0.98, 0.995, 200)  # four: 1.8 %
    assert too_many_differ(0.994, 0.995, 0)  # a cosine is no share of decisions
    assert not too_many_differ(0.995, 0.995, 0)


def test_too_few_rows_are_said_to_be() -> None:
    from tfc.optimizers.precision.int8.histogram import Histogram
    from tfc.optimizers.precision.int8.observe import Observed

    seen = Observed(rows=10)
    for name, largest in (("a", 1.0), ("b", 2.0)):
        halves = (Histogram(), Histogram())
        halves[0].add(np.array([largest]))
        halves[1].add(np.array([largest * 1.25]))
        seen.halves[name] = halves
    moved = movement(seen, "min-max", INT8)
    assert (moved.mean, moved.most) == pytest.approx((0.2, 0.2))
    assert moved.enough == 160  # 0.2 / 0.05 squared, times 10
    assert Range(-3.0, 2.0).amax == 3.0
    assert int8_notes(None) == ("the graph has Q/DQ of another tool, and is left as it is",)
