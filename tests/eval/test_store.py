"""What is answered outlives kills at any moment. The process that is killed needs no model, and so starts fast."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mobillama_v.eval.store import PREDICTIONS, Store

QUESTIONS = 3000
SCRIPT = f"""
import sys
from pathlib import Path
from mobillama_v.eval.store import Store
store, ids = Store(Path(sys.argv[1])), [str(i) for i in range({QUESTIONS})]
about = dict.fromkeys(("benchmark", "settings", "questions_sha256", "weights_sha256", "precision", "max_new_tokens"), 1)
with store.claimed(about | {{"model": "m"}}):
    print("begun", flush=True)
    known = store.answered()
    with store.shard(0) as shard:
        for each in ids:
            if each not in known:
                shard.add([{{"question_id": each, "text": each * 50}}])
    store.merge(ids)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, folder], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kills_at_random_moments_lose_no_answer(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    assert whole.stdout and whole.stdout.readline() == "begun\n"
    began = time.monotonic()
    assert whole.wait() == 0
    lasts, chance, seen = time.monotonic() - began, random.Random(), 0
    for attempt in range(20):
        folder = tmp_path / f"{attempt}"
        process = start(folder)
        assert process.stdout and process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0, lasts / 2))  # what follows the first answers may come sooner
        process.send_signal(signal.SIGKILL)
        process.wait()
        shards = [path.read_bytes() for path in folder.glob("shards/*.jsonl")]
        done = sum(content.count(b"\n") for content in shards)
        seen += 0 < done < QUESTIONS
        for path in folder.glob("shards/*.jsonl"):
            path.write_bytes(path.read_bytes() + b'{"question_id": "9", "te')  # as a kill within a write leaves it
        again = start(folder)
        assert again.wait() == 0
        assert (folder / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()
        assert all(answer["text"] == name * 50 for name, answer in Store(folder).answered().items())
        assert not (folder / "shards").exists()
    assert seen, "no kill came while answers were written"
