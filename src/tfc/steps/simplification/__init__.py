"""`tfc optimize --simplify`: what the outputs do not need is taken out of the graph."""
