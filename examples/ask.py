"""Ask several questions about one picture: ``python examples/ask.py [PICTURE]``."""

import sys
from pathlib import Path

from mobillama_v import Sampling, load

picture = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "demo/examples/shapes.png"
assistant = load("nano")  # or a model folder, or a Hugging Face id

chat = assistant.chat([picture])  # the picture is encoded once
for question in ("Describe the image.", "How many shapes are there?", "What color is the cross?"):
    print(f"{question} {chat.ask(question).text}")

# Without a seed every call draws another answer. The default, without sampling, is the likeliest words.
reply = assistant.ask([picture], "Describe the image.", Sampling(temperature=0.8, top_p=0.9, seed=1))
print(f"sampled: {reply.text} ({reply.new_tokens} tokens, {reply.finish_reason})")
