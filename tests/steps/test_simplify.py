"""`tfc optimize --simplify`: what goes, what stays exact, the gate, and what later steps see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoints import LABELS, save_tiny_checkpoint
from click.testing import CliRunner

import tfc
from tfc.artifact import Artifact
from tfc.cli import cli
from tfc.errors import BadData, UsageError
from tfc.simplified_graph import SIMPLIFIED, source_file
from tfc.steps.simplification.simplify import recognised_graph, undo_simplify

TEXTS = [
    f"{verb} {what} {when}"
    for verb in ("cancel", "refund", "please track")
    for what in ("my order", "the last invoice", "a parcel")
    for when in ("today", "before tomorrow evening", "as soon as you can, thank you")
]


def _quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def _with_idle_units(folder: Path, family: str = "bert", **config: Any) -> Path:
    """A checkpoint whose first head and last 64 neurons of each layer write nothing."""
    from safetensors.torch import load_file, save_file

    save_tiny_checkpoint(folder, family, num_attention_heads=4, **config)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("attention.output.dense.weight"):
            tensor[:, :16] = 0
        elif name.endswith("output.dense.weight") and ".layer." in name:
            tensor[:, 64:] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Artifact, dict[str, Any]]:
    """A simplified artifact, and the report."""
    folder = tmp_path_factory.mktemp("idle")
    artifact = tfc.export(_with_idle_units(folder / "checkpoint"), folder / "artifact").artifact
    tfc.build_engine(artifact, backend="onnxruntime")
    result = tfc.simplify(artifact, data, max_drop=0.0)
    return Artifact.open(artifact.path), result.report


def test_idle_heads_and_neurons_go_and_matrices_shrink(
    idle: tuple[Artifact, dict[str, Any]],
) -> None:
    artifact, report = idle
    for site in report["sites"]:
        assert site["kept"] <= (3 if site["kind"] == "heads" else 64)
        assert site["kind"] != "heads" or 0 in site["removed"]
    assert report["flops"]["simplified"] < 0.75 * report["flops"]["whole"]
    assert report["judging"]["agreement"] == 1.0
    model = ir.load(artifact.file(SIMPLIFIED))
    assert {node.domain for node in model.graph} <= {"", "ai.onnx"}


def test_engines_of_the_whole_graph_are_gone_and_new_ones_start_from_the_new(
    idle: tuple[Artifact, dict[str, Any]], tmp_path: Path
) -> None:
    artifact, report = idle
    assert not artifact.manifest.engines
    assert source_file(artifact, "model") == SIMPLIFIED
    copy = Artifact.open(shutil.copytree(artifact.path, tmp_path / "copy"))
    tfc.build_engine(copy, backend="onnxruntime")
    copy = Artifact.open(copy.path)
    result = tfc.verify(copy)
    assert not result.failed
    step = copy.manifest.step("optimize:onnxruntime")
    assert step is not None
    assert SIMPLIFIED in step.inputs
    layers = 2 - sum(not s["kept"] for s in report["sites"] if s["kind"] == "heads")
    assert step.result["fusions"]["attention"] == {"found": layers, "expected": layers}
    _swap_labels(copy)
    assert "asked of the simplified graph" in tfc.verify(copy).verdicts[0].reason
    assert undo_simplify(copy)
    copy = Artifact.open(copy.path)
    assert not copy.manifest.engines
    assert source_file(copy, "model") == "model.onnx"


def _swap_labels(artifact: Artifact) -> None:
    """Let the simplified graph, and its engine, say other labels than PyTorch."""
    from tfc.onnx_files import save_onnx
    from tfc.steps.optimize import loaded_graph

    model = loaded_graph(artifact, "model")
    bias = next(
        v
        for v in model.graph.initializers.values()
        if v.shape is not None and v.shape.numpy() == (len(LABELS),)
    )
    assert bias.const_value is not None
    bias.const_value = ir.tensor(
        bias.const_value.numpy() + np.array([-99, 99, 0], np.float32), name=bias.name
    )
    with artifact.change() as change:
        save_onnx(model, change.path(SIMPLIFIED))
    tfc.build_engine(artifact, backend="onnxruntime")


@pytest.mark.parametrize(
    ("family", "heads", "config"),
    [
        ("bert", 1, {"num_attention_heads": 1}),
        ("modernbert", 2, {}),
        ("qwen2", 2, {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}),
    ],
)
def test_cut_graphs_compute_what_the_units_that_stay_give(
    family: str, heads: int, config: dict[str, Any], tmp_path: Path
) -> None:
    """Against the whole graph with the same rows of the reading matrices at zero."""
    from tfc.optimizers.executor import outputs_of, relative_difference
    from tfc.optimizers.simplification.fitting import Path as UnitPath
    from tfc.optimizers.simplification.fitting import Reading
    from tfc.optimizers.simplification.lanes import weight_of
    from tfc.optimizers.simplification.removal import simplified
    from tfc.optimizers.simplification.sites import bias_input, bias_of, sites_of
    from tfc.steps.probes import probe_feeds

    checkpoint = save_tiny_checkpoint(
        tmp_path / "checkpoint", family, num_hidden_layers=1, **config
    )
    artifact = tfc.export(checkpoint, tmp_path / "artifact").artifact
    model = recognised_graph(artifact, _quiet)
    sites, _ = sites_of(model)
    assert [(s.kind, s.units) for s in sites] == [("heads", heads), ("neurons", 128)]
    kept, zeroed = {}, model.clone()
    for site in sites:
        matrix = weight_of(site.reader)
        assert matrix is not None
        added = bias_of(site.reader)
        bias = added.inputs[bias_input(added)] if added is not None else None
        array = bias.const_value.numpy() if bias is not None and bias.const_value else None
        reading = Reading(matrix, array, np.zeros(len(matrix)), np.eye(len(matrix)))
        gone = (0,) if site.kind == "heads" else tuple(range(0, 128, 2))
        kept[site.name] = UnitPath(site, reading, (gone,), (0.0,)).kept_after(1, fitted=False)
    for site in sites_of(zeroed)[0]:
        reads = np.array(site.reads)
        stay = np.isin(reads, kept[site.name].units).astype(np.float32)
        _scale_rows(zeroed, site.reader, stay)
    feeds = probe_feeds(artifact, "model")
    cut = simplified(model, kept)
    assert relative_difference(outputs_of(zeroed, feeds), outputs_of(cut, feeds)) < 1e-5
    assert _floats(cut) < _floats(model)


def _scale_rows(model: ir.Model, node: ir.Node, factors: Any) -> None:
    from tfc.optimizers.graph import add_constant, insert_before

    given = node.inputs[0]
    assert given is not None
    product = ir.node("Mul", [given, add_constant(model, f"{node.name}.stay", factors)])
    insert_before(node, [product])
    node.replace_input_with(0, product.outputs[0])


def _floats(model: ir.Model) -> int:
    """Of what every product reads, shared matrices counted for each."""
    from tfc.optimizers.simplification.lanes import weight_of

    matrices = [weight_of(node) for node in model.graph]
    return sum(matrix.size for matrix in matrices if matrix is not None)


def test_no_data_few_rows_and_no_share_are_refused(
    idle: tuple[Artifact, dict[str, Any]], tmp_path: Path
) -> None:
    artifact, _ = idle
    with pytest.raises(UsageError, match="none was given"):
        tfc.simplify(artifact, None)
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "one"}\n')
    with pytest.raises(BadData, match="1 rows are too few"):
        tfc.simplify(artifact, few)
    with pytest.raises(UsageError, match="is not possible"):
        tfc.simplify(artifact, few, max_drop=2)


def test_the_command_tells_what_went_and_goes_back(
    idle: tuple[Artifact, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    artifact, report = idle
    copy = str(shutil.copytree(artifact.path, tmp_path / "copy"))

    def run(*arguments: str) -> str:
        done = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["optimize", copy, *arguments])
        assert done.exit_code == 0, done.output
        assert max(map(len, done.stdout.splitlines())) <= 80
        return done.stdout

    said = run("--simplify", "--calib", str(data), "--max-drop", "0%")
    assert said.startswith("the simplified graph is up to date\nFLOPs ")
    rows = [line.split() for line in said.splitlines() if " heads " in line or " neurons " in line]
    assert [row[1] for row in rows] == ["attention.output.dense", "output.dense"] * 2
    kept = [str(site["kept"]) if site["kept"] else "dropped" for site in report["sites"]]
    assert [row[4] for row in rows] == kept
    assert "judged on other " in said
    assert run("--no-simplify") == "back to the exported graph\n"
    assert run("--no-simplify") == "the graph is not simplified\n"
    done = CliRunner().invoke(cli, ["optimize", copy, "--calib", str(data), "--target", "tensorrt"])
    assert done.exit_code == 2
    assert "--calib goes with --simplify" in done.output
