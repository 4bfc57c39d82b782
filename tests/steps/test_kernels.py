"""`tfc inspect --kernels`, on what TensorRT-RTX compiles of a tiny BERT."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import save_tiny_checkpoint
from click.testing import CliRunner, Result

import tfc
from tfc.cli import cli
from tfc.errors import ContractNotReached, MissingPackage
from tfc.kernel_report import KernelRecord, report_from_json, summary_of
from tfc.optimizers.graph import add_constant, constant, module_of, set_type
from tfc.runtime.backends import backend
from tfc.runtime.backends.kernel_log import kernels_from_log
from tfc.steps import precision
from tfc.steps.kernel_records import layer_prefixes, records_of_kernels
from tfc.steps.kernels import kernels_before, kernels_of_engine

ENGINE = "tensorrt-rtx-fp16"
LOGS = Path(__file__).parent.parent / "data" / "tensorrt_logs"
SELF = "bert.encoder.layer.1.attention.self"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT that labels tokens: its last layer is like the others. Copy it."""
    folder = tmp_path_factory.mktemp("kernels")
    checkpoint = save_tiny_checkpoint(folder / "c", head="TokenClassification")
    tfc.export(checkpoint, folder / "a")
    return folder / "a"


@pytest.fixture(scope="module")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an engine of TensorRT-RTX in fp16. Do not change it: copy it."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("built") / "a"))
    tfc.build_engine(tfc.Artifact.open(folder), precision="fp16", backend="tensorrt-rtx")
    return folder


@pytest.fixture(scope="module")
def records(built: Path) -> list[KernelRecord]:
    return kernels_of_engine(tfc.Artifact.open(built), ENGINE).graphs["model"]


def inspect(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["inspect", str(folder), *options])


@needs_rtx
@pytest.mark.rtx
def test_the_kernels_of_a_bert(records: list[KernelRecord]) -> None:
    summary = summary_of(records)
    assert summary.kinds == {
        "gemm": 9,
        "norm": 5,
        "attention": 2,
        "layout": 2,
        "cast": 1,
        "mask": 1,
    }
    assert summary.layers == [8, 8]
    assert summary.outside == {"cast": 1, "gemm": 1, "mask": 1, "norm": 1}
    assert (summary.waits, summary.bytes) == (0, None)


@needs_rtx
@pytest.mark.rtx
def test_the_kernels_of_one_layer_in_their_order(records: list[KernelRecord]) -> None:
    layer = [(r.kind, r.precision, r.product) for r in records if r.layer == 0 and r.works]
    assert layer == [
        ("gemm", "fp16", "fp16"),
        ("layout", "fp16", ""),
        ("attention", "fp16", "fp16"),
        ("gemm", "fp16", "fp16"),
        ("norm", "fp16", ""),
        ("gemm", "fp16", "fp16"),
        ("gemm", "fp16", "fp16"),
        ("norm", "fp16", ""),
    ]


@needs_rtx
@pytest.mark.rtx
def test_the_layers_of_a_family_with_rotary_embeddings_and_windows(tmp_path: Path) -> None:
    """ModernBERT: its feed-forward network is gated, and a window may hide every key of a row."""
    checkpoint = save_tiny_checkpoint(tmp_path / "c", "modernbert", head="TokenClassification")
    artifact = tfc.export(checkpoint, tmp_path / "a").artifact
    tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx")
    found = kernels_of_engine(artifact, ENGINE).graphs["model"]
    summary = summary_of(found)
    assert summary.layers == [8, 9]
    assert (summary.waits, summary.kinds["attention"]) == (0, 2)
    graph = ir.load(artifact.file("optimized/tensorrt/model.onnx")).graph
    assert [node.op_type for node in graph].count("IsNaN") == 1  # the first layer has no window


@needs_rtx
@pytest.mark.rtx
def test_a_kernel_names_its_nodes_and_their_modules(records: list[KernelRecord]) -> None:
    gemms = [r for r in records if r.kind == "gemm" and r.layer == 1]
    qkv, output, up, down = gemms
    assert all(path.startswith(SELF) for path in qkv.modules)
    assert set(output.modules) == {"bert.encoder.layer.1.attention.output.dense"}
    assert dict(zip(up.nodes, up.modules, strict=True))["node_gelu_1"] == (
        "bert.encoder.layer.1.intermediate.intermediate_act_fn"
    )
    assert set(down.modules) == {"bert.encoder.layer.1.output.dense"}


@needs_rtx
@pytest.mark.rtx
def test_the_list_is_a_file_of_the_artifact(built: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(built, tmp_path / "a"))
    artifact = tfc.Artifact.open(copy)
    name = f"engines/{ENGINE}/kernels.json"
    assert name in artifact.manifest.step(f"build-engine:{ENGINE}").outputs
    text = artifact.file(name).read_text(encoding="utf-8")
    assert report_from_json(text, name).precision == "fp16"
    (copy / name).write_text(text.replace("gemm", "norm"), encoding="utf-8")
    ended = inspect(copy, "--kernels")
    assert ended.exit_code == 5
    assert "do not match the hash" in ended.stderr


@needs_rtx
@pytest.mark.rtx
def test_json_holds_everything(built: Path, records: list[KernelRecord]) -> None:
    ended = inspect(built, "--kernels", "--engine", ENGINE, "--json")
    engine = json.loads(ended.stdout)["engines"][ENGINE]
    graph = engine["graphs"]["model"]
    assert [KernelRecord(**kernel) for kernel in graph["kernels"]] == records
    assert graph["summary"] == dataclasses.asdict(summary_of(records))
    assert engine["audit"]["fused_attention"] == 2
    assert "before" not in engine


@needs_rtx
@pytest.mark.rtx
def test_the_unoptimized_export_beside_it(built: Path) -> None:
    before = kernels_before(tfc.Artifact.open(built), ENGINE)
    summary = summary_of(before.report.graphs["model"])
    assert summary.kinds == {
        "gemm": 9,
        "pointwise": 6,
        "norm": 5,
        "layout": 3,
        "attention": 2,
        "mask": 1,
    }
    assert summary.layers == [11, 11]
    ended = inspect(built, "--kernels", "--before")
    assert ended.exit_code == 0, ended.stderr
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    for line in (
        f"Kernels of {ENGINE} in layer 1 (bert.encoder.layer.1)",
        "1 mask the attention mask",
        "layers 2 × 8 kernels",
        "kinds gemm 9, norm 5, attention 2, layout 2, cast 1, mask 1",
        "bytes not told: TensorRT lists no sizes of dynamic axes",
        "kernels per layer 11 8",
        "pointwise 6 0",
    ):
        assert line in lines, line
    assert any(line.startswith("fused attention 2/2, add+LayerNorm 4/4") for line in lines)
    assert max(map(len, ended.stdout.splitlines())) <= 80


@needs_rtx
@pytest.mark.rtx
def test_what_tensorrt_does_not_compile_is_said(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_no_type(model: ir.Model, _: str) -> ir.Model:
        model.graph[-1].op_type = "NoSuchOperator"
        return model

    monkeypatch.setattr("tfc.steps.kernels.raw_in_precision", in_no_type)
    ended = inspect(built, "--kernels", "--before", "--json")
    before = json.loads(ended.stdout)["engines"][ENGINE]["before"]
    assert "NoSuchOperator" in before["refusal"]


@needs_rtx
@pytest.mark.rtx
def test_an_engine_of_one_size_tells_bytes(built: Path, tmp_path: Path) -> None:
    artifact = tfc.Artifact.open(shutil.copytree(built, tmp_path / "a"))
    tfc.build_engine(
        artifact, precision="fp16", backend="tensorrt-rtx", batch=(4, 4, 4), sequence=(64, 64, 64)
    )
    found = kernels_of_engine(artifact, ENGINE).graphs["model"]
    down = [r for r in found if r.kind == "gemm" and r.layer == 1][-1]
    assert down.bytes == 4 * 64 * 64 * 2
    assert "bytes     not told" not in inspect(artifact.path, "--kernels").stdout


@needs_rtx
@pytest.mark.rtx
def test_an_engine_of_an_older_tfc_is_built_again(built: Path, tmp_path: Path) -> None:
    artifact = tfc.Artifact.open(shutil.copytree(built, tmp_path / "a"))
    with artifact.change() as change:
        step = change.manifest.step(f"build-engine:{ENGINE}")
        change.record(dataclasses.replace(step, outputs=step.outputs[:1]))
        change.drop(f"engines/{ENGINE}/kernels.json")
    ended = inspect(artifact.path, "--kernels")
    assert ended.exit_code == 5
    text = " ".join(ended.stderr.split())
    assert f"the engine '{ENGINE}' was built by an older tfc" in text
    assert "--fp16 --backend tensorrt-rtx" in text
    assert not tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").skipped
    assert tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx").skipped
    assert inspect(artifact.path, "--kernels").exit_code == 0


@needs_rtx
@pytest.mark.rtx
def test_the_package_may_be_missing_where_kernels_are_read(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = MissingPackage("the package 'tensorrt_rtx' is not installed", fix="Install it")
    monkeypatch.setattr(type(backend("tensorrt-rtx")), "_cannot_build", lambda _: gone)
    assert inspect(built, "--kernels").exit_code == 0
    ended = inspect(built, "--kernels", "--before")
    assert ended.exit_code == 4
    assert "the package 'tensorrt_rtx' is not installed" in ended.stderr


@needs_rtx
@pytest.mark.rtx
def test_the_share_of_each_precision(built: Path) -> None:
    audit = tfc.Artifact.open(built).manifest.engines[ENGINE].audit["precision"]
    shares = {
        name: (share["gemms"], share["attentions"]) for name, share in audit["compiled"].items()
    }
    assert shares == {"fp16": (9, 2)}
    assert audit["compiled"] == audit["graph"]
    rows, length, hidden, labels = 32, 128, 64, 3
    layer = 2 * rows * length * (4 * hidden * hidden + 2 * hidden * 128 + 2 * length * hidden)
    head = 2 * rows * length * hidden * labels
    assert audit["compiled"]["fp16"]["flops"] == 2 * layer + head
    ended = inspect(built, "--engine", ENGINE)
    assert "products   fp16 100 % of the FLOPs (9 GEMMs, 2 attentions)" in ended.stdout
    assert "Artifact" not in ended.stdout


def linear_layers(graph: ir.Graph) -> list[ir.Node]:
    """The products with weights."""
    products = [node for node in graph if node.op_type == "MatMul"]
    return [node for node in products if constant(node.inputs[1]) is not None]


def in_fp32(model: ir.Model, whole: bool) -> None:
    """Computes each linear layer between casts in fp32; with `whole` the add of its bias too."""
    wide, half = ir.DataType.FLOAT, ir.DataType.FLOAT16
    for node in linear_layers(model.graph):
        cast = ir.node("Cast", [node.inputs[0]], {"to": wide}, name=f"{node.name}_in")
        set_type(cast.outputs[0], wide, node.inputs[0].shape)
        model.graph.insert_before(node, [cast])
        node.replace_input_with(0, cast.outputs[0])
        last = node
        if whole:
            (use,) = node.outputs[0].uses()
            last = use.node
        for place in (node, last) if whole else (node,):
            array = constant(place.inputs[1]).astype(np.float32)
            place.replace_input_with(1, add_constant(model, f"{place.name}_wide", array))
            set_type(place.outputs[0], wide, place.outputs[0].shape)
        output = last.outputs[0]
        uses = list(output.uses())
        back = ir.node("Cast", [output], {"to": half}, name=f"{node.name}_out")
        set_type(back.outputs[0], half, output.shape)
        model.graph.insert_after(last, [back])
        for use in uses:
            use.node.replace_input_with(use.idx, back.outputs[0])
    for name in [n for n, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


def convert_badly(monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    original = precision._arithmetic

    def worse(*arguments: Any, **options: Any) -> tuple[ir.Model, dict[str, Any]]:
        model, result = original(*arguments, **options)
        in_fp32(model, whole)
        return model, result

    monkeypatch.setattr(precision, "_arithmetic", worse)


@needs_rtx
@pytest.mark.rtx
def test_an_fp16_engine_whose_products_are_fp32_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_badly(monkeypatch, whole=True)
    artifact = tfc.Artifact.open(shutil.copytree(exported, tmp_path / "a"))
    with pytest.raises(ContractNotReached) as caught:
        tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
    what, _, named = caught.value.what.partition(": ")
    assert what == (
        "the engine is called fp16, but 9 of its 11 products, 66.7 % of the FLOPs, are compiled "
        "in fp32"
    )
    graph = ir.load(artifact.file("optimized/tensorrt.fp16/model.onnx")).graph
    gemms = linear_layers(graph)[:3]
    kernels = ("__myl_FcAddCast_myl0_2", "node_MatMul_83_myl0_7",
               "__myl_FcAddCastDivCastErfCastAddMulMulCast_myl0_9")  # fmt: skip
    assert (
        named
        == ", ".join(
            f"{node.name} ({module_of(node)}) in {kernel}"
            for node, kernel in zip(gemms, kernels, strict=True)
        )
        + ", and 6 more"
    )
    assert caught.value.where == "optimized/tensorrt.fp16/model.onnx"
    assert ENGINE not in tfc.Artifact.open(artifact.path).manifest.engines


@needs_rtx
@pytest.mark.rtx
def test_products_that_tensorrt_narrows_are_counted(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between casts from and to fp16 alone it compiles an fp32 product in fp16."""
    convert_badly(monkeypatch, whole=False)
    artifact = tfc.Artifact.open(shutil.copytree(exported, tmp_path / "a"))
    built = tfc.build_engine(artifact, precision="fp16", backend="tensorrt-rtx", allow_missed=True)
    audit = built.engine.audit["precision"]
    assert audit["narrowed"] == 9
    assert audit["compiled"]["fp16"]["gemms"] == 9
    assert audit["graph"]["fp32"]["gemms"] == 9


def test_errors_say_what_to_do(make_artifact: Any) -> None:
    folder = make_artifact().path
    for options, what in (
        (["--kernels"], "this artifact has no TensorRT engine whose kernels could be listed"),
        (["--kernels", "--engine", "onnxruntime-fp32"], "has no compiled kernels"),
        (["--engine", "tensorrt-fp16"], "this artifact has no engine 'tensorrt-fp16'"),
        (["--before"], "--before goes with --kernels"),
    ):
        ended = inspect(folder, *options)
        assert ended.exit_code == 2
        assert what in " ".join(ended.stderr.split())
    assert "tfc build-engine" in inspect(folder, "--kernels").stderr


def test_one_engine_as_json(make_artifact: Any) -> None:
    artifact = make_artifact()
    ended = inspect(artifact.path, "--engine", "onnxruntime-fp32", "--json")
    engine = artifact.manifest.engines["onnxruntime-fp32"]
    assert json.loads(ended.stdout) == {"onnxruntime-fp32": dataclasses.asdict(engine)}


@pytest.mark.parametrize(
    ("attentions", "layers"),
    [
        (["bert.encoder.layer.0.a", "bert.encoder.layer.1.a"], ["bert.encoder.layer.0",
                                                                "bert.encoder.layer.1"]),
        (["d.layers.0.self_attn", "d.layers.0.encoder_attn", "d.layers.1.self_attn",
          "d.layers.1.encoder_attn"], ["d.layers.0", "d.layers.1"]),
        (["b.0.layer.0.Self", "b.0.layer.1.Cross", "b.1.layer.0.Self"], ["b.0", "b.1"]),
        (["s.0.blocks.0.a", "s.0.blocks.1.a", "s.1.blocks.0.a"],
         ["s.0.blocks.0", "s.0.blocks.1", "s.1.blocks.0"]),
        (["layer.0.a", "head.a"], ["layer.0"]),
        (["shared.0.a", "shared.0.a"], []),
        (["attention", ""], []),
        ([], []),
    ],
    ids=["bert", "bart", "t5", "swin", "a head outside", "albert", "no numbers", "none"],
)  # fmt: skip
def test_the_paths_of_layers(attentions: list[str], layers: list[str]) -> None:
    assert layer_prefixes(attentions) == {path: i for i, path in enumerate(layers)}


def test_without_paths_layers_are_told_by_their_repetition() -> None:
    kernels = kernels_from_log([(LOGS / "bert_fp16_whole.log").read_text()])
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    found = records_of_kernels(kernels, model)
    assert Counter(r.layer for r in found if r.works) == {
        None: 12,
        0: 9,
        1: 9,
    }
    assert [r.kind for r in found if r.layer == 1][:3] == ["gemm", "layout", "attention"]
