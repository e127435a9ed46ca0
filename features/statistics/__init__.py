"""Small data shipped with the package: frozen batch-norm statistics and tag names of published weights.

`benchmarks/calibrate_choi2016.py` makes the .safetensors files; each carries its card.
"""
