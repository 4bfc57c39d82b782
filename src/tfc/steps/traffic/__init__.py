"""Optimization profiles from the lengths of texts: `tfc build-engine --profile-from`.

Read the lengths (`lengths`), know what a batch costs (`costs`), choose the widths (`buckets`), and
say what that gives beside other ways (`plan`).
"""
