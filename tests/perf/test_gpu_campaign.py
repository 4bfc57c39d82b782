"""The GPU campaign where there is no GPU: all of its stages, and what is carried to the machine."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfc.runtime.backends.base import GpuMemory

FOLDER = Path(__file__).resolve().parents[2] / "perf" / "gpu"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def _scripts_can_be_imported() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)


def script(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    made = []
    for name, size in (("small.whl", 10), ("large.whl", 2500), ("empty.whl", 0)):
        path = tmp_path / name
        path.write_bytes(random.bytes(size))
        made.append(path)
    return made


def test_parts_are_joined_over_several_calls(files: list[Path], tmp_path: Path) -> None:
    parts = script("parts")
    parts.split(files, tmp_path / "parts", 1000)
    folders = sorted((tmp_path / "parts").iterdir())
    assert [folder.name for folder in folders] == ["part-00", "part-01", "part-02"]
    for folder in folders:
        pieces = [each for each in folder.iterdir() if each.name != parts.INDEX]
        assert sum(each.stat().st_size for each in pieces) <= 1000
    into = tmp_path / "joined"
    assert parts.join([folders[1]], into) == parts.Joined((), ("part-00", "part-02"))
    assert parts.join([folders[0]], into) == parts.Joined(("small.whl",), ("part-02",))
    assert parts.join([folders[2]], into).missing_parts == ()
    for file in files:
        assert (into / file.name).read_bytes() == file.read_bytes()
    assert parts.join([], into).whole == ("small.whl", "large.whl", "empty.whl")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda piece: piece.write_bytes(b"x" + piece.read_bytes()[1:]), "is not what was packed"),
        (lambda piece: piece.write_bytes(piece.read_bytes()[:-1]), "and 1000 were packed"),
        (lambda piece: piece.unlink(), "is not there"),
    ],
)
def test_a_damaged_part_is_named_and_not_taken_in(
    files: list[Path], tmp_path: Path, damage: Any, told: str
) -> None:
    parts = script("parts")
    parts.split(files, tmp_path / "parts", 1000)
    piece = tmp_path / "parts" / "part-01" / "large.whl.01"
    whole = piece.read_bytes()
    damage(piece)
    with pytest.raises(parts.DamagedPart, match=rf"part-01/large\.whl\.01 .*{told}"):
        parts.join([piece.parent], tmp_path / "joined")
    assert not any((tmp_path / "joined" / parts.PIECES).iterdir())
    piece.write_bytes(whole)
    parts.join(sorted((tmp_path / "parts").iterdir()), tmp_path / "joined")
    assert (tmp_path / "joined" / "large.whl").read_bytes() == files[1].read_bytes()


def test_the_command_that_joins_needs_nothing_but_python(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    parts = script("parts")
    parts.split(files[:1], tmp_path / "parts", 1000)
    part = str(tmp_path / "parts" / "part-00")
    monkeypatch.setattr(sys, "argv", ["parts.py", "join", part, "--into", str(tmp_path / "in")])
    assert parts.main() == 0
    assert capsys.readouterr().out == "whole: small.whl\nmissing parts: none\n"
    (tmp_path / "parts" / "part-00" / "small.whl.00").unlink()
    assert parts.main() == 1
    assert "small.whl.00 is not there" in capsys.readouterr().err


def test_what_is_pinned() -> None:
    pack = script("pack")
    pins = pack.pinned(pack.ROOT / "constraints.txt")
    assert pins["onnxruntime-gpu"].startswith("onnxruntime-gpu==")
    assert ";" not in "".join(pins.values())


def test_a_stage_goes_on_with_what_is_not_done(tmp_path: Path) -> None:
    results = script("results")
    far = time.monotonic() + 60
    calls: list[str] = []

    def works() -> dict[str, int]:
        calls.append("works")
        return {"answer": 1}

    def breaks() -> dict[str, int]:
        raise ValueError("broken\nin two lines")

    def refuses() -> dict[str, int]:
        raise results.Skip("not here")

    for _ in range(2):
        stage = results.Stage("one", (tmp_path / "a", tmp_path / "b"), far)
        stage.item("works", works)
        stage.item("breaks", breaks)
        stage.item("refuses", refuses)
        stage.write(complete=True)
    late = results.Stage("one", (tmp_path / "a",), time.monotonic() - 1)
    assert late.item("more", works)["reason"] == "the time of this call was used up"
    assert calls == ["works"]
    report = json.loads((tmp_path / "b" / "one.json").read_text())
    assert (report["stage"], report["schema"], report["complete"]) == ("one", 1, False)
    told = {item["name"]: (item["status"], item.get("reason")) for item in report["items"]}
    assert told == {
        "works": ("done", None),
        "breaks": ("failed", "ValueError: broken"),
        "refuses": ("skipped", "not here"),
    }
    assert results.found_by(tmp_path / "b", "one") == {"works": {"answer": 1}}


@pytest.fixture(scope="module")
def campaigned(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, _tiny_artifact: Path
) -> Path:
    """The folder of results after the stages that need no further process."""
    campaign, speed = script("campaign"), script("speed")
    work = tmp_path_factory.mktemp("campaign")
    shutil.copytree(tiny_checkpoint, work / "bert-tiny" / "checkpoint")
    shutil.copytree(_tiny_artifact, work / "bert-tiny" / "artifact")
    asked = dataclasses.replace(campaign.SMALL, rows=(2,), callers=(2,), texts=8, seconds=0.01)
    call = campaign.Call(campaign.Where("cpu", "fp32", work), asked, ("bert",), ())
    speed._SIDES["cpu"] = (64,)
    stages = [name for name in campaign.STAGES if name not in ("environment", "rtx", "tests")]
    campaign.run(stages, call, (work / "copy",), minutes=5)
    return work


@pytest.mark.ort
@pytest.mark.rtx
def test_every_stage_runs_without_a_gpu(campaigned: Path) -> None:
    results, contestants = script("results"), script("contestants")
    found = {path.stem: json.loads(path.read_text()) for path in campaigned.glob("copy/*.json")}
    names = "peak models throughput mixed concurrency graphs profile job"
    assert set(found) == set(names.split())
    for report in found.values():
        for item in report["items"]:
            assert item["status"] in results.STATUSES
            assert item["status"] != results.FAILED, item
            assert ("found" in item) == (item["status"] == results.DONE)
            if item["status"] == results.SKIPPED:
                assert "no plan of tensorrt" in item["reason"]
    (cell,) = results.found_by(campaigned / "copy", "throughput").values()
    own = {contestants.EAGER, contestants.SDPA, contestants.ORT_RAW, contestants.ORT_FUSED}
    assert set(cell["timings"]) == set(cell["share_of_peak"]) == own
    assert set(cell["left_out"]) == {contestants.RTX, contestants.TENSORRT}
    assert all(distance["relative"] < 1e-4 for distance in cell["distance"].values())
    assert cell["flops"] == script("models").SHAPES["bert-tiny"].flops(16) * 2
    (job,) = results.found_by(campaigned / "copy", "job").values()
    assert (job["texts"], job["failed"], job["hardware"]) == (8, 0, "CPU")


def test_the_summary_claims_nothing_that_was_not_measured(campaigned: Path, tmp_path: Path) -> None:
    text = (campaigned / "copy" / "summary.md").read_text()
    assert "No TensorRT plan has run." in text
    assert "No GPU test has run." in text
    assert "- bert-base: not measured" in text
    cell = {
        "timings": {
            "torch-compile": {"tokens_per_second": 2e6, "p50": 0.01},
            "rtx": {"tokens_per_second": 2.9e6, "p50": 0.007},
        },
        "ratios": {"torch-compile": 1.0, "rtx": 1.45},
        "share_of_peak": {"torch-compile": 0.4, "rtx": 0.6},
        "baseline": "torch-compile",
    }
    item = {"name": "bert-base", "status": "done", "seconds": 1, "found": cell}
    (tmp_path / "mixed.json").write_text(json.dumps({"items": [item]}))
    told = script("summary").summary(tmp_path)
    assert (
        "- bert-base: 2,900,000 of 2,800,000 tokens/s (rtx), reached;"
        " 1.45 × torch-compile, missed (bar 1.5)" in told
    )


def test_a_wrong_contestant_is_not_measured() -> None:
    speed, contestants = script("speed"), script("contestants")
    right = np.linspace(-1, 1, 12)
    assert speed._is_right(contestants.distance(right * 1.001, right))
    for wrong in (-right, right + 0.1, np.full(12, np.nan)):
        assert not speed._is_right(contestants.distance(wrong, right))
    assert not speed._is_right({"error": "it stopped"})


def test_a_plan_that_ends_its_process_is_a_failed_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx, results = script("rtx"), script("results")
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\necho the GPU is gone >&2\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(rtx.sys, "executable", str(dies))
    stage = results.Stage("rtx", (tmp_path / "results",), time.monotonic() + 60)
    rtx.load_and_run(stage, tmp_path, ("bert", "roberta"))
    stage.write(complete=True)
    assert list(stage.items) == ["rtx:portable:bert", "rtx:current:bert", "tensorrt:here:bert"]
    for item in stage.items.values():
        reason = "RuntimeError: the process ended with -11: the GPU is gone"
        assert (item["status"], item["reason"]) == ("failed", reason)
    with pytest.raises(results.Skip, match="no plan of tensorrt-rtx has run here"):
        rtx.working_form(tmp_path / "results", "rtx")


def test_families_after_one_that_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx, results = script("rtx"), script("results")
    answers = tmp_path / "answers"
    answers.write_text(
        "#!/bin/sh\nwhile read family; do\n  [ $family = odd ] && kill -SEGV $$\n"
        "  echo noise; echo '@@ {\"right\": true}'\ndone\n"
    )
    answers.chmod(0o755)
    monkeypatch.setattr(rtx.sys, "executable", str(answers))
    monkeypatch.setattr(rtx, "FORMS", {"rtx": ("portable",)})
    stage = results.Stage("rtx", (tmp_path / "results",), time.monotonic() + 60)
    rtx.load_and_run(stage, tmp_path, ("bert", "odd", "roberta"))
    told = {name: item["status"] for name, item in stage.items.items()}
    assert told == {
        "rtx:portable:bert": "done",
        "rtx:portable:odd": "failed",
        "rtx:portable:roberta": "done",
    }


def test_the_form_that_was_right_is_the_one_to_measure(tmp_path: Path) -> None:
    rtx, results = script("rtx"), script("results")
    stage = results.Stage("rtx", (tmp_path,), time.monotonic() + 60)
    stage.item("rtx:portable:bert", lambda: {"right": False})
    stage.item("rtx:current:bert", lambda: {"right": True})
    assert rtx.working_form(tmp_path, "rtx") == "current"


@pytest.fixture
def as_if_plans_ran(campaigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plans are ONNX Runtime's engine of the tiny model, which gives right outputs."""
    from tfc.runtime.backends.onnxruntime import OnnxRuntimeBackend

    rtx, models = script("rtx"), script("models")
    shutil.copytree(campaigned / "bert-tiny", tmp_path / "tiny-bert")
    graph = models.graph_in(models.Model("bert", tmp_path / "tiny-bert"), "onnxruntime", "fp32")
    loaded: list[bool] = []

    def load(plan: Any, *, graphs: bool = True) -> Any:
        loaded.append(graphs)
        run = OnnxRuntimeBackend().load(graph, threads=1).run
        memory = GpuMemory(1, 1, 2, 3, 4, 5)
        return SimpleNamespace(run=run, close=lambda: None, memory=memory, loaded=loaded)

    monkeypatch.setattr(rtx, "built", lambda *_: rtx.BuiltPlan(None, graph))
    monkeypatch.setattr(rtx, "load", load)
    monkeypatch.setattr(rtx, "working_form", lambda *_: "current")
    return tmp_path


@pytest.mark.ort
def test_a_plan_is_judged_against_pytorch(
    as_if_plans_ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = script("rtx")
    found = rtx._one("rtx", "current", "bert", as_if_plans_ran)
    assert found["right"] is True
    assert list(found["batches"]) == ["1×1", "4×16", "16×64"]
    assert found["memory"]["plan"] == 1
    runner = rtx.load(None)

    def wrong(batch: Any) -> Any:
        return {"logits": runner.run(batch)["logits"][:, ::-1]}

    monkeypatch.setattr(rtx, "load", lambda plan: SimpleNamespace(**{**vars(runner), "run": wrong}))
    assert rtx._one("rtx", "current", "bert", as_if_plans_ran)["right"] is False


@pytest.mark.ort
def test_plans_with_cuda_graphs_and_without(campaigned: Path, as_if_plans_ran: Path) -> None:
    campaign, speed, results = script("campaign"), script("speed"), script("results")
    where = campaign.Where("cpu", "fp32", campaigned)
    asked = dataclasses.replace(
        campaign.SMALL, rows=(1, 64), contestants=("torch-sdpa", "rtx"), seconds=0.01
    )
    stage = results.Stage("graphs", (as_if_plans_ran / "results",), time.monotonic() + 60)
    speed.cuda_graphs(stage, where, asked)
    ((name, item),) = stage.items.items()  # 64 rows are too many for a graph
    assert (name, item["status"]) == ("bert-tiny 1×16", "done")
    assert set(item["found"]["timings"]) == {"rtx", "rtx-without-graphs"}
    assert item["found"]["baseline"] == "rtx-without-graphs"
    assert script("rtx").load(None).loaded == [True, False, True]


def test_gpu_tests_are_told_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, results = script("campaign"), script("results")
    own = tmp_path / "test_own.py"
    own.write_text(
        "import pytest\n"
        "@pytest.mark.gpu\ndef test_good():\n    pass\n"
        "@pytest.mark.gpu\ndef test_bad():\n    assert 1 == 2\n"
        "@pytest.mark.gpu\ndef test_not_here():\n    pytest.skip('no GPU')\n"
        "def test_other():\n    pass\n"
    )
    where = campaign.Where("cpu", "fp32", tmp_path)
    stage = results.Stage("tests", (tmp_path / "results",), time.monotonic() + 60)
    campaign.tests(stage, campaign.Call(where, campaign.SMALL, (), (str(own),)))
    stage.write(complete=True)
    (found,) = results.found_by(tmp_path / "results", "tests").values()
    told = {case["name"].rpartition("::")[2]: case["outcome"] for case in found["cases"]}
    assert told == {"test_good": "passed", "test_bad": "failure", "test_not_here": "skipped"}
    text = script("summary").summary(tmp_path / "results")
    assert "GPU tests: 1 failure, 1 passed, 1 skipped" in text
    assert "test_bad: " in text


def test_cuda_libraries_of_pip_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = script("machine")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert machine.with_cuda_folders({}) is None
    lib = tmp_path / "nvidia" / "cu13" / "lib"
    lib.mkdir(parents=True)
    found = machine.with_cuda_folders({"LD_LIBRARY_PATH": "/opt/lib"})
    assert found == {"LD_LIBRARY_PATH": f"{lib}:/opt/lib"}
    assert machine.with_cuda_folders(found) is None
