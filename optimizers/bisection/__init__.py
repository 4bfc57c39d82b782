"""Where two graphs that should say the same part ways: the pass, the node, a sub-graph of it."""
