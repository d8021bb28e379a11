"""Two names of torchvision, for MosaicML Streaming, which imports them at start and needs neither for our data.

PyPI's torchvision is compiled for a CUDA build of torch and does not load beside a CPU build.
"""
