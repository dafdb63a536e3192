"""Time and memory of an evaluation: `python benchmarks/evaluation.py [images]`, by default 10,000 mini birds.

Everything that needs no download: distances over the judge's features and the CLIP's, kernel distance, precision and
recall, R-precision, CLIP similarity, SSIM, diversity, caption accuracy. Also a tenth of the pictures, to show that
memory doesn't follow their number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil

from galiplib import load_config, load_generator
from galiplib.evaluation import measure_generator


def measure(images: int) -> dict[str, float]:
    """Seconds, and the process's peak memory in GB."""
    config = load_config("mini", {"eval.images": images, "eval.features": ("judge", "clip")})
    generator = load_generator()
    started = time.perf_counter()
    measure_generator(generator, generator.bridge, config)
    seconds = time.perf_counter() - started
    return {"images": images, "seconds": round(seconds, 1), "peak_gb": round(peak() / 1e9, 2)}


def peak() -> int:
    """The largest memory that this process has held, bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Each size in a process of its own, or the peak would be that of the largest."""
    if len(sys.argv) > 2:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for images in (most // 10, most):
        subprocess.run([sys.executable, __file__, "--one", str(images)], check=True)


if __name__ == "__main__":
    main()
