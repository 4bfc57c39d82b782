"""The task table: which transformers class loads a checkpoint, and what its graph gives."""

from __future__ import annotations

from dataclasses import dataclass

from tfc.errors import BadCheckpoint, UsageError
from tfc.exporter.cross_encoder import is_cross_encoder
from tfc.exporter.source import Source

TEXT_CLASSIFICATION = "text-classification"
ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
TOKEN_CLASSIFICATION = "token-classification"
QUESTION_ANSWERING = "question-answering"
FILL_MASK = "fill-mask"
FEATURE_EXTRACTION = "feature-extraction"
IMAGE_CLASSIFICATION = "image-classification"
IMAGE_FEATURE_EXTRACTION = "image-feature-extraction"
TEXT_GENERATION = "text-generation"
TEXT2TEXT_GENERATION = "text2text-generation"
SPEECH_RECOGNITION = "automatic-speech-recognition"

# What a model reads.
TEXT, IMAGE, SPEECH = "text", "image", "speech"


@dataclass(frozen=True)
class TaskSpec:
    """One task: its names, the ends of its architectures' names, its loader, what it reads.

    `outputs` are the fields of the model's output that the graph gives; a task that generates
    has none, its graphs are built elsewhere.
    """

    name: str
    aliases: tuple[str, ...]
    architectures: tuple[str, ...]
    auto_class: str
    reads: str = TEXT
    outputs: tuple[str, ...] = ("logits",)

    @property
    def generates(self) -> bool:
        """Whether the model gives text, token by token."""
        return not self.outputs


# In the order in which an architecture's name is looked up: `Model` ends the names of others too.
TASKS: tuple[TaskSpec, ...] = (
    TaskSpec(
        TEXT_CLASSIFICATION,
        ("sequence-classification", "sentiment-analysis"),
        ("ForSequenceClassification",),
        "AutoModelForSequenceClassification",
    ),
    TaskSpec(
        TOKEN_CLASSIFICATION,
        ("ner",),
        ("ForTokenClassification",),
        "AutoModelForTokenClassification",
    ),
    TaskSpec(
        QUESTION_ANSWERING,
        ("extractive-question-answering",),
        ("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
        "AutoModelForQuestionAnswering",
        outputs=("start_logits", "end_logits"),
    ),
    TaskSpec(FILL_MASK, ("masked-lm",), ("ForMaskedLM",), "AutoModelForMaskedLM"),
    TaskSpec(
        IMAGE_CLASSIFICATION,
        (),
        ("ForImageClassification",),
        "AutoModelForImageClassification",
        reads=IMAGE,
    ),
    TaskSpec(
        SPEECH_RECOGNITION,
        ("asr", "speech-to-text"),
        ("WhisperForConditionalGeneration", "ForSpeechSeq2Seq"),
        "AutoModelForSpeechSeq2Seq",
        reads=SPEECH,
        outputs=(),
    ),
    TaskSpec(
        TEXT2TEXT_GENERATION,
        ("translation", "summarization", "seq2seq"),
        ("ForConditionalGeneration", "MTModel"),
        "AutoModelForSeq2SeqLM",
        outputs=(),
    ),
    TaskSpec(
        TEXT_GENERATION,
        ("causal-lm",),
        ("ForCausalLM", "LMHeadModel"),
        "AutoModelForCausalLM",
        outputs=(),
    ),
    TaskSpec(
        IMAGE_FEATURE_EXTRACTION,
        ("image-embedding",),
        (),
        "AutoModel",
        reads=IMAGE,
        outputs=("embedding",),
    ),
    TaskSpec(
        ZERO_SHOT_CLASSIFICATION,
        ("zero-shot",),
        (),
        "AutoModelForSequenceClassification",
    ),
    TaskSpec(
        FEATURE_EXTRACTION,
        ("sentence-similarity", "embedding"),
        ("Model", "CLIPTextModelWithProjection"),
        "AutoModel",
        outputs=("embedding",),
    ),
)


# The `task_type` of an adapter's config.
_ADAPTER_TASKS = {
    "SEQ_CLS": TEXT_CLASSIFICATION,
    "TOKEN_CLS": TOKEN_CLASSIFICATION,
    "QUESTION_ANS": QUESTION_ANSWERING,
    "FEATURE_EXTRACTION": FEATURE_EXTRACTION,
    "CAUSAL_LM": TEXT_GENERATION,
    "SEQ_2_SEQ_LM": TEXT2TEXT_GENERATION,
}
# Tasks that share the ends of their architectures' names with models that read images.
_SHARED_WITH_IMAGES = (FEATURE_EXTRACTION, TEXT2TEXT_GENERATION)


def task_names() -> list[str]:
    """The tasks that `--task` takes."""
    return [task.name for task in TASKS]


def task_of(source: Source, asked: str | None) -> TaskSpec:
    """The task that was asked for, or the one that the checkpoint's architecture tells.

    Raises:
        UsageError: no task has the name that was asked for.
        BadCheckpoint: the architecture is of a task that tfc does not take.
    """
    if asked is not None:
        for task in TASKS:
            if asked == task.name or asked in task.aliases:
                return task
        raise UsageError(
            f"there is no task '{asked}'", fix=f"Choose one of: {', '.join(task_names())}"
        )
    if source.modules and not is_cross_encoder(source):
        return _task(FEATURE_EXTRACTION)
    if source.adapter.get("task_type") in _ADAPTER_TASKS:
        return _task(_ADAPTER_TASKS[source.adapter["task_type"]])
    named_task = next((t for t in TASKS if source.architecture.endswith(t.architectures)), None)
    if named_task is not None and named_task.name not in _SHARED_WITH_IMAGES:
        return named_task
    if reads_images(source):
        return _task(IMAGE_FEATURE_EXTRACTION)
    if named_task is not None:
        return named_task
    named = source.architecture or "no architecture in its config.json"
    raise BadCheckpoint(
        f"this checkpoint's task is not supported: {named}",
        where=source.given,
        fix=f"tfc exports {', '.join(task_names())}; choose one of them with --task if it applies",
    )


def reads_images(source: Source) -> bool:
    """Whether the class that the checkpoint was saved from takes pixels and no text."""
    import transformers

    known = getattr(transformers, source.architecture, None)
    return getattr(known, "main_input_name", "") == "pixel_values"


def _task(name: str) -> TaskSpec:
    return next(task for task in TASKS if task.name == name)
