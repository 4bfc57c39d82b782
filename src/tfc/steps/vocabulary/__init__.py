"""`tfc optimize --trim-vocab`: cut the vocabulary to what a corpus uses."""
