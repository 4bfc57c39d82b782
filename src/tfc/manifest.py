"""The manifest of an artifact (`tfc.json`): its schema as frozen dataclasses.

The format is described in docs/artifact.md. Nothing here touches the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 2
# The names of graphs, and of their dynamic axes.
MODEL, ENCODER, DECODER = "model", "encoder", "decoder"
BATCH, SEQUENCE, ENCODER_SEQUENCE = "batch", "sequence", "encoder_sequence"
PAST, TOTAL = "past", "total"


@dataclass(frozen=True)
class Checkpoint:
    """What the artifact was made from.

    `sha256` is the hash over the checkpoint's files (names and contents), so that a later
    comparison with PyTorch can tell whether it reads the same weights. Where it is an adapter,
    `base` is its base model, whose files the hash covers too.
    """

    source: str
    sha256: str
    model_type: str
    architecture: str
    parameters: int
    revision: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Speech:
    """The tokens that tell a decoder what to write of a recording.

    `languages` and `tasks` map names to tokens; `language` and `task` are the model's own choice,
    empty where it is open. `forced` are the tokens after the first one that an old checkpoint
    fixes, None where the language is open.
    """

    languages: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    language: str = ""
    task: str = ""
    no_timestamps: int | None = None
    forced: list[int | None] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """What the model does and how its outputs are read.

    `problem` is `single_label`, `multi_label` or `regression` for text-classification and empty
    otherwise. `labels[i]` names the i-th logit. `pooling` and `normalize` say what the graph
    does to the token embeddings in feature-extraction (`pooling` is `none` where the output is
    one vector per token). `generation` holds how a model that generates decodes by default: the
    fields of transformers' GenerationConfig that differ from its defaults. `heads` maps the
    name of each output of a graph with several classifiers to what that classifier does.
    """

    name: str
    problem: str = ""
    labels: list[str] = field(default_factory=list)
    pooling: str = ""
    normalize: bool = False
    generation: dict[str, Any] = field(default_factory=dict)
    speech: Speech | None = None
    heads: dict[str, Task] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: `shape` holds sizes, or names for the dynamic axes."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True)
class Signature:
    """The tensors that go in and come out, in order."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of the model, in the file `<its name>.onnx`.

    `fusion_sites` holds what the model's config says that the graph must contain: `attention`
    blocks and `add_layernorm` sites; it is empty where the graph's own structure is counted.
    """

    signature: Signature
    fusion_sites: dict[str, int] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        """The inputs' names, in order."""
        return [spec.name for spec in self.signature.inputs]


@dataclass(frozen=True)
class Preprocess:
    """How text becomes input tensors: `max_length` is in tokens, special tokens included.

    `prompts` are texts that a model was trained to read before its input, by name, and
    `default_prompt` names the one that is used when none is asked for. `mask_id` is the token
    that fill-mask predicts. Ids that the tokenizer gives from `missing_from` on, where it is not
    null, are pieces that the model does not know: it is given `unknown_id` for them.
    """

    tokenizer: str
    max_length: int
    pad_id: int
    pad_type_id: int
    padding_side: str
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    mask_id: int | None = None
    missing_from: int | None = None
    unknown_id: int | None = None


@dataclass(frozen=True)
class Member:
    """One model of an ensemble: what it was made from, and how its outputs are taken.

    `labels[i]` names its own i-th logit; the ensemble's order is that of its task. Its logits are
    divided by `temperature`, and it counts with `weight` (they sum to 1). `inputs` are the
    graph's inputs that it reads.
    """

    checkpoint: Checkpoint
    labels: list[str]
    weight: float
    temperature: float
    inputs: list[str]


@dataclass(frozen=True)
class Stage:
    """The second stage of a stack: the class that it was made from, its size, and its file."""

    kind: str
    parameters: int
    file: str


@dataclass(frozen=True)
class Ensemble:
    """Several models in one graph, whose combination is its output (`tfc.ensemble`).

    With the rule `heads` each model has an output of its own, in the order of the task's `heads`.

    Where members have other tokenizers than the first one, `preprocess` has those: the n-th of
    them, from 0 on, gives the inputs whose names end in `_<n + 2>`.

    With the rule `stack` the members are combined by `stage`, and `normalize` says what it reads.
    """

    rule: str
    normalize: str
    members: list[Member]
    preprocess: list[Preprocess] = field(default_factory=list)
    stage: Stage | None = None


@dataclass(frozen=True)
class Resize:
    """How an image is scaled, in pixels, with the Pillow filter called `filter`.

    Either to `height` x `width`; or so that the shorter side is `shortest_edge` and the aspect
    ratio stays, and then, if there is a `longest_edge`, so that the longer side is no longer.
    """

    filter: str
    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None


@dataclass(frozen=True)
class ImagePreprocess:
    """How an image becomes `pixel_values`: the steps in their order, None for one left out.

    `crop` is [height, width] in pixels, around the centre, filled up with black where the image
    is smaller. `rescale_factor` multiplies the bytes 0..255. `mean` and `std` are of red, green
    and blue, after rescaling: (value - mean) / std.
    """

    resize: Resize | None
    crop: list[int] | None
    rescale_factor: float | None
    mean: list[float] | None
    std: list[float] | None


@dataclass(frozen=True)
class AudioPreprocess:
    """How a recording becomes `input_features`: a log-mel spectrogram.

    `feature_size` counts mel bands, `sampling_rate` is in Hz, `n_fft` and `hop_length` are in
    samples. Recordings are cut, or filled up with `padding_value`, to `chunk_length` seconds.
    """

    feature_size: int
    sampling_rate: int
    hop_length: int
    chunk_length: int
    n_fft: int
    padding_value: float

    @property
    def samples(self) -> int:
        """How many samples of a recording the model hears."""
        return self.chunk_length * self.sampling_rate


@dataclass(frozen=True)
class FileRecord:
    """A file of the artifact: SHA-256 in hex and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """One step that ran: what it read (file → SHA-256), how, for how long, what it wrote."""

    name: str
    options: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str]
    versions: dict[str, str]
    seconds: float
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """The texts that an engine was built for, and how the runtime batches them.

    `lengths` counts rows of the model by their tokens, of so many `texts` in the file `data`;
    `refused` of them could not be read. `widths` are the sizes of the sequence axis that batches
    are padded to, in ascending order; it is empty where each batch is as wide as its longest text.
    A batch has at most `rows` rows, and at most `tokens` tokens with padding. Texts of a narrower
    width join one while it has no more than `launch_tokens`. They are sorted by length in windows
    of `window`. `cost` holds the curve that the widths were chosen by, and the expected padding and
    cost beside other ways.
    """

    data: str
    texts: int
    refused: int
    lengths: dict[str, int]
    widths: list[int]
    rows: int
    tokens: int
    launch_tokens: int
    window: int
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A compiled engine.

    `files` maps each graph to what it was compiled to.
    `state` is `runnable` (it was loaded and run on the machine that built it) or
    `built, not run` with the reason in `state_reason`. `hardware` names what it was built for.

    `profile` spans all that it takes. `profiles` are its optimization profiles in their order,
    where it has several: for each axis [min, opt, max]. `memory` has the bytes of activations that
    each profile needs on the GPU; it is empty where the compiler does not tell. `traffic` is there
    where the profiles were made for texts of the user's own.
    """

    backend: str
    precision: str
    files: dict[str, str]
    state: str
    state_reason: str
    profile: dict[str, list[int]]
    versions: dict[str, str]
    hardware: str
    audit: dict[str, Any] = field(default_factory=dict)
    profiles: list[dict[str, list[int]]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    traffic: Traffic | None = None


@dataclass(frozen=True)
class Verdict:
    """What `tfc verify` found for one engine: `verified`, `failed` or `not run`."""

    verdict: str
    reason: str
    engine_sha256: str
    data_sha256: str
    tolerance: dict[str, float]
    outputs: dict[str, dict[str, float]]
    versions: dict[str, str]
    hardware: str


@dataclass(frozen=True)
class Manifest:
    """Everything that the artifact says about itself.

    `graphs` holds one graph called `model`, or `encoder` and `decoder` (`decoder` alone for a
    model without an encoder) for one that generates. `preprocess`, `images` and `audio` say how
    what the model reads becomes tensors; a model that writes text has its tokenizer in the first.
    `ensemble` tells the models of which the graph was made, where there are several.
    """

    tfc: str
    checkpoint: Checkpoint
    task: Task
    graphs: dict[str, Graph]
    preprocess: Preprocess | None
    files: dict[str, FileRecord]
    steps: list[Step]
    images: ImagePreprocess | None = None
    audio: AudioPreprocess | None = None
    ensemble: Ensemble | None = None
    engines: dict[str, Engine] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    @property
    def signature(self) -> Signature:
        """The tensors of the first graph, which takes what the preprocessing gives."""
        return next(iter(self.graphs.values())).signature

    def step(self, name: str) -> Step | None:
        """The latest record of the step called `name`."""
        return next((s for s in reversed(self.steps) if s.name == name), None)
