"""The transformers classes: configurations, models, processors, and their registration."""
