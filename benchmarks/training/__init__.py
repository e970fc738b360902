"""Train segmentation models with merging, or without."""
