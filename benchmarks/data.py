"""Time and memory of data: 1 GB of text in tokens, batches of a file of 1 GB, the start of 10 GB of shards.

    python benchmarks/data.py [--folder DIR] [--mib 1024] [--only encode batch start] [--json FILE]

Each part runs in a process of its own; the text is the standard library, repeated with other names.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

MIB = 2**20
VOCABULARY = 50_257
BATCHES = 400
WORD = re.compile(rb"[a-z_]{6,}")


def write_text(path: Path, mib: int) -> None:
    """Python's standard library in other orders, with other words for a third of its names."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [one for one in sorted(root.rglob("*.py")) if "site-packages" not in one.parts]
    with path.open("wb") as file:
        for turn in range(10_000):
            rng = random.Random(turn)
            for one in rng.sample(files, len(files)):
                content = one.read_bytes()
                if turn:
                    words = sorted(set(WORD.findall(content)))
                    new = {word: word + b"_%d" % rng.randrange(99) for word in words if rng.random() < 0.33}
                    content = WORD.sub(lambda found, new=new: new.get(found[0], found[0]), content)
                file.write(content)
                if file.tell() >= mib * MIB:
                    return


def write_tokenizer(text: Path, path: Path) -> None:
    """A byte-level BPE of 16,384 tokens, trained on the first 4 MiB."""
    from tokenizers import ByteLevelBPETokenizer

    with text.open("rb") as file:
        sample = file.read(4 * MIB).decode(errors="replace")
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([sample], vocab_size=16_384, show_progress=False)
    made.save(str(path))


def encode(folder: Path) -> dict:
    """Seconds and memory of the first start of `source: tokens`, and of the second one."""
    from flagformer.lab.data.tokens import TokenFile

    source = TokenFile(
        source="tokens", path=folder / "text", tokenizer=folder / "tokenizer.json", seq_len=512
    )
    began, used = time.perf_counter(), time.process_time()
    source.check("train", 512)
    took, cpu = time.perf_counter() - began, time.process_time() - used
    began = time.perf_counter()
    source.batch("train", 0, 0, 32, 512)
    found = {"bytes": (folder / "text").stat().st_size, "seconds": took, "cpu_seconds": cpu}
    return {**found, "tokens": len(source.content("train")), "batch_seconds": time.perf_counter() - began}


def batch(folder: Path) -> dict:
    """Seconds of a batch of 32 rows of 512 tokens, mapped: the median, without the first pass over pages."""
    from flagformer.lab.data.shards import Shards

    source = Shards(source="shards", path=folder / "ids.bin", vocabulary=VOCABULARY, seq_len=512)
    source.check("train", 512)
    found = {}
    for rows in (8, 32):
        times, used = [], time.process_time()
        for step in range(BATCHES):
            began = time.perf_counter()
            source.batch("train", step, 0, rows, 512)
            times.append(time.perf_counter() - began)
        cpu = (time.process_time() - used) / BATCHES
        found[f"{rows} rows"] = {"median": statistics.median(times), "least": min(times), "cpu_mean": cpu}
    return found


def start(folder: Path) -> dict:
    """Seconds and memory of the start of a folder of shards, after the imports."""
    from flagformer.lab.data.shards import Shards

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.perf_counter(), time.process_time()
    source = Shards(source="shards", path=folder / "shards", vocabulary=VOCABULARY, seq_len=512)
    source.fingerprint()
    source.check("train", 512)
    source.batch("train", 0, 0, 32, 512)
    took, cpu = time.perf_counter() - began, time.process_time() - used
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": took, "cpu_seconds": cpu, "more_mib": more / 1024}


PARTS = {"encode": encode, "batch": batch, "start": start}


def prepare(part: str, folder: Path, mib: int) -> None:
    """Write the files of a part."""
    if part == "encode":
        write_text(folder / "text", mib)
        write_tokenizer(folder / "text", folder / "tokenizer.json")
    elif part == "batch":
        import numpy as np

        rng = np.random.default_rng(0)
        with (folder / "ids.bin").open("wb") as file:
            for _ in range(mib // 64):
                file.write(rng.integers(0, VOCABULARY, 32 * MIB, dtype=np.uint16).tobytes())
    else:
        (folder / "shards").mkdir()
        for number in range(100):
            with (folder / "shards" / f"{number:03}.bin").open("wb") as file:
                file.truncate(100_000_000)  # sparse: zeros that take no disk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        found = PARTS[given.run](given.folder)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    results = {}
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        for part in given.only:
            prepare(part, folder, given.mib)
            words = [sys.executable, __file__, "--run", part, "--folder", str(folder)]
            done = subprocess.run(
                words, capture_output=True, text=True, check=True,
                env={**os.environ, "FLAGFORMER_CACHE": str(folder / "cache")},
            )  # fmt: skip
            results[part] = json.loads(done.stdout)
            print(part, json.dumps(results[part], indent=2), flush=True)
    finally:
        shutil.rmtree(folder)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
