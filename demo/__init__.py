"""The Gradio image chat. Import it as ``mobillama_v.demo``."""
