"""One tool of perf/batch_cpu.py: a process that embeds a file of texts whenever it is told to.

It is started by the Python that has the tool. It says `ready` with its start-up times, then for
every line on its standard input embeds all texts and answers with the seconds that it took, strings
in, normalised float32 out. With `save PATH` it also writes the embeddings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Texts = Sequence[str]
Embed = Callable[[Texts], np.ndarray]
LONGEST, TOKENS, ROWS = 256, 512, 32


def main() -> None:
    """`worker.py SPEC`: SPEC is JSON with tool, texts, calib, model, onnx, build, threads."""
    spec = json.loads(sys.argv[1])
    texts = texts_of(Path(spec["texts"]))
    begun = time.perf_counter()
    embed = TOOLS[spec["tool"]](spec)
    loaded = time.perf_counter() - begun
    embed(texts[:1])
    _say({"load_s": loaded, "first_s": time.perf_counter() - begun, "versions": _versions()})
    for line in sys.stdin:
        begun = time.perf_counter()
        found = embed(texts)
        _say({"seconds": time.perf_counter() - begun})
        if line.startswith("save "):
            np.save(line[5:].strip(), found.astype(np.float32))
            _say({})


def texts_of(path: Path) -> list[str]:
    """The texts of a file of JSON lines."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _say(answer: dict[str, Any]) -> None:
    sys.__stdout__.write("\x1e" + json.dumps(answer) + "\n")  # libraries print lines of their own
    sys.__stdout__.flush()


def _versions() -> dict[str, str]:
    from importlib.metadata import distributions

    wanted = {"torch", "sentence-transformers", "optimum", "optimum-intel", "optimum-onnx", "nncf"}
    wanted |= {"onnxruntime", "onnxruntime-gpu", "openvino", "ctranslate2", "transformers"}
    found = {each.metadata["Name"]: each.version for each in distributions()}
    return {name: found[name] for name in sorted(wanted & set(found))}


def sentence_transformers(spec: dict[str, Any], backend: str, half: bool = False) -> Embed:
    """As its documentation has it; the ONNX and OpenVINO graphs are exported on loading."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(spec["threads"])
    kwargs: dict[str, Any] = {"torch_dtype": torch.bfloat16} if half else {}
    model = SentenceTransformer(
        spec["model"], backend=backend, device="cpu", local_files_only=True, model_kwargs=kwargs
    )
    model.max_seq_length = LONGEST

    def embed(texts: Texts) -> np.ndarray:
        return np.asarray(
            model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False),
            np.float32,
        )

    return embed


def onnxruntime(spec: dict[str, Any]) -> Embed:
    """The exported graph, with ONNX Runtime's own optimisations, all threads for each batch."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = ort.InferenceSession(spec["onnx"], options, providers=["CPUExecutionProvider"])

    def embed(texts: Texts) -> np.ndarray:
        found = np.empty((len(texts), 384), np.float32)
        for places, feed in batches_of(spec, texts):
            found[places] = session.run(None, feed)[0]
        return found

    return embed


def openvino(spec: dict[str, Any], precision: str | None, quantized: bool = False) -> Embed:
    """The exported graph with the hint for throughput and its asynchronous queue."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(spec["onnx"])
    if quantized:
        import nncf

        texts = texts_of(Path(spec["calib"]))
        feeds = [feed for _, feed in batches_of(spec, texts)]
        model = nncf.quantize(model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER)
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": spec["threads"],
    }
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", settings)

    def embed(texts: Texts) -> np.ndarray:
        found = np.empty((len(texts), 384), np.float32)
        queue = ov.AsyncInferQueue(compiled)

        def done(request: Any, places: list[int]) -> None:
            found[places] = request.get_output_tensor(0).data

        queue.set_callback(done)
        for places, feed in batches_of(spec, texts):
            queue.start_async(feed, places)
        queue.wait_all()
        return found

    return embed


def ctranslate2(spec: dict[str, Any], kind: str) -> Embed:
    """Converted to `kind`; batches in parallel on one thread each; pooled here."""
    import ctranslate2 as ct2

    folder = Path(spec["build"]) / f"ct2-{kind}"
    if not folder.exists():
        converter = ct2.converters.TransformersConverter(spec["model"])
        converter.convert(str(folder), quantization=kind)
    encoder = ct2.Encoder(
        str(folder), compute_type=kind, inter_threads=spec["threads"], intra_threads=1
    )

    def run(ids: list[list[int]]) -> np.ndarray:
        hidden = np.array(encoder.forward_batch(ids).last_hidden_state)
        mask = np.arange(hidden.shape[1])[None] < np.array([len(row) for row in ids])[:, None]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed(texts: Texts) -> np.ndarray:
        from concurrent.futures import ThreadPoolExecutor

        ids = encoded(spec, texts)
        found = np.empty((len(texts), 384), np.float32)

        def one(places: list[int]) -> None:
            found[places] = run([ids[place] for place in places])

        with ThreadPoolExecutor(spec["threads"]) as pool:
            list(pool.map(one, _sorted(ids)))
        return found

    return embed


def tfc(spec: dict[str, Any], engine: str) -> Embed:
    """An engine of the artifact, as `tfc run` uses it, with the plan that was measured."""
    from tfc.runtime import Session

    session = Session.for_jobs(spec["artifact"], engine, spec["threads"])
    print(session.plan.text() if session.plan else "no plan", file=sys.stderr)

    def embed(texts: Texts) -> np.ndarray:
        found = [outcome.prediction["embedding"] for outcome in session.outcomes(texts)]
        return np.stack(found)

    return embed


def encoded(spec: dict[str, Any], texts: Texts) -> list[list[int]]:
    """The tokens of each text, by the model's tokenizer."""
    from tokenizers import Tokenizer

    if "tokenizer" not in spec:
        spec["tokenizer"] = Tokenizer.from_file(str(Path(spec["model"]) / "tokenizer.json"))
        spec["tokenizer"].no_padding()
        spec["tokenizer"].enable_truncation(LONGEST)
    return [each.ids for each in spec["tokenizer"].encode_batch(list(texts))]


def _sorted(ids: list[list[int]]) -> Iterator[list[int]]:
    """Rows of similar length, as many as `ROWS` and `TOKENS` allow: what is fastest here."""
    batch: list[int] = []
    for place in sorted(range(len(ids)), key=lambda place: -len(ids[place])):
        if batch and (len(batch) == ROWS or (len(batch) + 1) * len(ids[batch[0]]) > TOKENS):
            yield batch
            batch = []
        batch.append(place)
    yield batch


def batches_of(spec: dict[str, Any], texts: Texts) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The places of a batch's texts, and its arrays."""
    ids = encoded(spec, texts)
    for places in _sorted(ids):
        array = np.zeros((len(places), len(ids[places[0]])), np.int64)
        mask = np.zeros_like(array)
        for row, place in enumerate(places):
            array[row, : len(ids[place])] = ids[place]
            mask[row, : len(ids[place])] = 1
        names = {"input_ids": array, "attention_mask": mask, "token_type_ids": array * 0}
        yield places, names


TOOLS: dict[str, Callable[[dict[str, Any]], Embed]] = {
    "sentence-transformers torch": partial(sentence_transformers, backend="torch"),
    "sentence-transformers torch bf16": partial(sentence_transformers, backend="torch", half=True),
    "sentence-transformers onnx": partial(sentence_transformers, backend="onnx"),
    "sentence-transformers openvino": partial(sentence_transformers, backend="openvino"),
    "onnxruntime": onnxruntime,
    "openvino fp32": partial(openvino, precision="f32"),
    "openvino (bf16 by itself)": partial(openvino, precision=None),
    "openvino int8 (NNCF)": partial(openvino, precision=None, quantized=True),
    "ctranslate2 fp32": partial(ctranslate2, kind="float32"),
    "ctranslate2 int8": partial(ctranslate2, kind="int8"),
    "tfc onnxruntime-fp32": partial(tfc, engine="onnxruntime-fp32"),
    "tfc onnxruntime-int8": partial(tfc, engine="onnxruntime-int8"),
    "tfc openvino-fp32": partial(tfc, engine="openvino-fp32"),
    "tfc openvino-bf16": partial(tfc, engine="openvino-bf16"),
    "tfc openvino-int8": partial(tfc, engine="openvino-int8"),
}

if __name__ == "__main__":
    main()
