"""Image towers: open_clip's vision transformers, and the embedded model's hybrid tower."""
