"""Take attention heads, FFN neurons and sublayers out of a graph that can do without them."""
