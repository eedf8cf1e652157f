"""Describe every picture of a folder in a table: ``python examples/folder_to_csv.py FOLDER OUT.csv``."""

import csv
import sys
from pathlib import Path

from mobillama_v import MobiLlamaVError, load

BATCH = 8  # pictures at a time

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
assistant = load("nano")

with out.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["file", "description", "error"])
    for start in range(0, len(pictures), BATCH):
        encoded = []
        for path in pictures[start : start + BATCH]:
            try:
                encoded.append((path, assistant.encode_image(path)))
            except MobiLlamaVError as error:  # a damaged file must not end the batch
                table.writerow([path.name, "", error])
        replies = assistant.ask_batch([([image], "Describe the image.") for _, image in encoded])
        table.writerows([path.name, reply.text, ""] for (path, _), reply in zip(encoded, replies, strict=True))
print(f"{len(pictures)} pictures, written to {out}")
