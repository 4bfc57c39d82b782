"""From a checkpoint to an ONNX graph that is known to say the same.

`tfc.exporter.source` and `tfc.exporter.tasks` tell what a checkpoint is, without torch;
`tfc.exporter.export.export_checkpoint` loads and exports it.
"""
