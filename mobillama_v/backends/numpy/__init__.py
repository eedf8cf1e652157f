"""A small model on a CPU without torch: its image tower over numpy, and its decoder where there is no native engine.

To import torch takes longer than such a model takes to describe a picture.
"""
