"""The model in torch: decoder, image towers, and the whole of them."""
