"""A small model on a CPU without torch: its image tower over numpy, its decoder in the native engine.

To import torch takes longer than such a model takes to describe a picture.
"""
