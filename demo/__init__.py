"""The Gradio image chat and the HTTP server. Import it as ``mobillama_v.demo``."""

if __name__ != "mobillama_v.demo":  # the checkout's folder was found, not the installed package
    raise ImportError("demo/ is mobillama_v.demo: pip install -e . and import it by that name")
