"""Families beyond BERT's export with parity: left and right padding, holes, one row, one token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoints import TOKENIZER_FOLDER, save_tiny_checkpoint

from tfc.exporter.modules import EosLogitsOf
from tfc.exporter.patches.attention_mask_rows import give_attention_masks_their_rows


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_the_end_of_sequence_is_pooled_as_transformers_does(tmp_path: Path, family: str) -> None:
    import transformers

    folder = save_tiny_checkpoint(tmp_path / "c", family)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER_FOLDER)
    for texts in (["refund my order, please", "no"], ["one text"], ["a", "b", "c d e f"]):
        feed = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected = model(**feed).logits
            got = EosLogitsOf(model)(**feed)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


ONE_ROW = """
<ir_version: 11, opset_import: ["" : 23]>
masked (float[batch,2,sequence,4] x, float[batch,1,{rows},sequence] mask) =>
       (float[batch,2,sequence,4] y) {{
  one = Attention (x, x, x, mask)
  y = Attention (one, x, x, mask)
}}
"""


def graph_with_mask(rows: str) -> ir.Model:
    model = ir.from_onnx_text(ONE_ROW.format(rows=rows))
    for node in model.graph:
        node.outputs[0].shape = model.graph.inputs[0].shape
    return model


def test_a_mask_of_one_row_gets_a_row_per_query() -> None:
    model = graph_with_mask("1")
    give_attention_masks_their_rows(model)
    operators = [node.op_type for node in model.graph]
    assert operators == ["Shape", "Concat", "Expand", "Attention", "Attention"]
    mask = model.graph.node(3).inputs[3]
    assert mask is not None
    assert mask is model.graph.node(4).inputs[3]
    assert str(mask.shape) == "[batch,1,sequence,sequence]"


def test_a_mask_with_its_rows_is_left_alone() -> None:
    model = graph_with_mask("sequence")
    give_attention_masks_their_rows(model)
    assert [node.op_type for node in model.graph] == ["Attention", "Attention"]


@pytest.mark.ort
def test_onnx_runtime_refuses_a_mask_of_one_row_and_takes_the_other() -> None:
    """When it takes both, the correction can go."""
    import onnxruntime

    model = graph_with_mask("1")
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 4), dtype=np.float32)
    mask = np.zeros((2, 1, 1, 5), np.float32)
    mask[1, :, :, 3:] = -1e30

    def run(model: ir.Model) -> np.ndarray:
        proto = ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x, "mask": mask})[0])

    with pytest.raises(Exception, match="inconsistent q_sequence_length"):
        run(model)
    give_attention_masks_their_rows(model)
    tensors = [torch.from_numpy(array) for array in (x, mask)]
    one = torch.nn.functional.scaled_dot_product_attention(*[tensors[0]] * 3, tensors[1])
    expected = torch.nn.functional.scaled_dot_product_attention(
        one, tensors[0], tensors[0], tensors[1]
    )
    np.testing.assert_allclose(run(model), expected.numpy(), atol=1e-6)
