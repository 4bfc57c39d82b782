"""A graph in int8: calibration, search, and what is asked of the result."""
