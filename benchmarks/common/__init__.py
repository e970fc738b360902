"""Hold what several benchmarks need: arguments, timing, memory, GFLOPs, pictures, the DINOv2 checkpoint."""
