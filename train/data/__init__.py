"""Training data: records, their check and conversion, features, batches."""
