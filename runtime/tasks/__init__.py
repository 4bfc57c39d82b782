"""The tasks: how items become rows for the model, and its outputs become predictions.

What an item is and what its prediction holds, a plain dict of JSON values; each task's module
says more, and which options a call may give (``session.predict(texts, top_k=3)``,
``tfc run --set top_k=3``):

========================  ====================  ==================================================
task                      an item               its prediction
========================  ====================  ==================================================
text-classification       a text, or a pair     by the model's problem. ``single_label``:
                                                ``label``, ``score`` (its probability), ``scores``
                                                (label → probability; they sum to 1).
                                                ``multi_label``: ``labels`` (those of probability
                                                ≥ 0.5), ``scores``. ``regression``: ``score``;
                                                with several outputs ``scores``
classification-heads      a text, or a pair     for each head, by its name, what
                                                text-classification gives
zero-shot-classification  a text                ``label``, ``score``, ``scores`` (best first)
token-classification      a text                ``entities``: ``label``, ``score``, ``start``,
                                                ``end`` (characters of the text), ``text``
question-answering        (question, context)   ``answer``, ``score``, ``start``, ``end``
                                                (characters of the context); with `top_k` above 1
                                                also ``answers``
fill-mask                 a text with masks     ``masks``: for each mask a list of ``token_str``,
                                                ``token``, ``score``, ``sequence``
feature-extraction        a text, or a pair     ``embedding``; without pooling
                                                ``token_embeddings``, one vector per token,
                                                special tokens included
text-generation           a text                ``text``: what the model adds; with several
                                                sequences also ``texts``
text2text-generation      a text                ``text``, or ``texts``
image-classification      an image              as single-label text-classification
image-feature-extraction  an image              ``embedding``
automatic-speech-         a recording           ``text``, or ``texts``
recognition
========================  ====================  ==================================================

Probabilities are computed in float64 from the logits, whatever the engine's precision. Numbers
are those of transformers' pipelines.
"""

from __future__ import annotations

from typing import Any

from tfc.runtime.tasks.base import TextTask
from tfc.runtime.tasks.classification import ClassificationHeads, TextClassification
from tfc.runtime.tasks.embedding import FeatureExtraction
from tfc.runtime.tasks.entities import TokenClassification
from tfc.runtime.tasks.fill_mask import FillMask
from tfc.runtime.tasks.generation import Text2TextGeneration, TextGeneration
from tfc.runtime.tasks.media import (
    ImageClassification,
    ImageFeatureExtraction,
    MediaTask,
    SpeechRecognition,
)
from tfc.runtime.tasks.question_answering import QuestionAnswering
from tfc.runtime.tasks.zero_shot import ZeroShotClassification

GENERATION_TASKS: dict[str, type[TextTask[Any]]] = {
    task.name: task for task in (TextGeneration, Text2TextGeneration)
}
MEDIA_TASKS: dict[str, type[MediaTask]] = {
    task.name: task for task in (ImageClassification, ImageFeatureExtraction, SpeechRecognition)
}
TEXT_TASKS: dict[str, type[TextTask[Any]]] = {
    task.name: task
    for task in (
        TextClassification,
        ClassificationHeads,
        ZeroShotClassification,
        TokenClassification,
        QuestionAnswering,
        FillMask,
        FeatureExtraction,
    )
}

EVERY_TASK: dict[str, Any] = {**TEXT_TASKS, **GENERATION_TASKS, **MEDIA_TASKS}
