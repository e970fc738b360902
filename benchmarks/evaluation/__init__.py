"""Measure the quality of segmentation models, with ALGM, with the methods it is compared with, and without."""
