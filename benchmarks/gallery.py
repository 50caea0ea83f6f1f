"""The gallery: every field of use as one command, its figures, pictures and page.

    python benchmarks/gallery.py --data $PRUNUS_DATA --out runs/gallery      (a day)
    python benchmarks/gallery.py --data $PRUNUS_DATA --out runs/gallery --only spoken_digits
    python benchmarks/gallery.py --page                                      (docs/gallery.md again)

Each row (``gallery_rows.py``) is ``prunus run`` in a process of its own, in a folder of its own:
rows that are finished are not run again. What the page shows is kept in ``gallery.jsonl``; what
both networks say to some examples is written when the row is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gallery_examples import shown
from gallery_rows import ROWS, Row

HERE = Path(__file__).parent
ROWS_FILE, PAGE = HERE / "gallery.jsonl", HERE.parent / "docs" / "gallery.md"
PICTURES = PAGE.parent / "gallery"


def run(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """Run a row, or open what an earlier call left, and gather its figures."""
    folder, spent = out / row.name, out / f"{row.name}.seconds"
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    began = time.perf_counter()
    if not (folder / "result.json").is_file():
        prunus = Path(sys.executable).with_name("prunus")
        words = [w.replace("runs/gallery", str(out)) for w in row.words]
        command = [prunus, "run", *words, "--folder", folder, "--data", data]
        with (out / f"{row.name}.log").open("a") as log:
            subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log)
        after = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        spent.write_text(f"{after - before} {time.perf_counter() - began}")
    print(f"{row.name}: {time.perf_counter() - began:.0f} s", flush=True)
    result = json.loads((folder / "result.json").read_text())
    about = json.loads((folder / "run.json").read_text())
    rounds = result["rounds"]
    processor, wall = map(float, spent.read_text().split())
    return {
        "name": row.name, "words": list(row.words), "metric_name": result["metric_name"],
        "dense": rounds[0]["metric"], "metric": result["metric"], "tested": result["tested"],
        "sparsity": [r for r in rounds if r["verdict"] != "rejected"][-1]["sparsity"],
        "before": result["cost_before"], "after": result["cost_after"],
        "compaction": result["compaction"], "deployment": _served(result["deployment"]),
        "controls": result.get("controls"), **examples(row, folder, data),
        "rounds": [{k: r[k] for k in ("sparsity", "metric", "train_metric", "verdict")}
                   for r in rounds],
        "dense_s": rounds[0]["seconds"], "seconds": sum(r["seconds"] for r in rounds),
        "processor_s": processor, "wall_s": wall, "why": result["why"],
        "environment": about["environment"],
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
    }  # fmt: skip


def examples(row: Row, folder: Path, data: Path) -> dict[str, str]:
    """What both networks say to some examples: the text, or the picture's name."""
    if row.part != "field":
        return {}
    os.environ["PRUNUS_DATA"] = str(data)
    found = shown(folder)
    if not found.picture:
        return {"said": found.text}
    PICTURES.mkdir(parents=True, exist_ok=True)
    file = PICTURES / f"{row.name}_examples.{found.ending}"
    file.write_bytes(found.picture)
    return {"picture": file.name}


def _served(made: dict[str, Any] | None) -> dict[str, Any] | None:
    """The artifact, and the dense model in its own fastest runtime."""
    if made is None:
        return None
    taken = (made["runtime"], "pruned")
    own = next(r for r in made["rows"] if (r["runtime"], r["model"]) == taken)
    dense = [r for r in made["rows"] if r["model"] == "dense" and r["exact"] and r["latency"]]
    ms = {b: t["median_ms"] for b, t in own["latency"].items()}
    best = {b: min(r["latency"][b]["median_ms"] for r in dense) for b in ms}
    own_name = made["runtime"].removesuffix("_int8")  # which is set beside float32
    there = next((r["bytes"] for r in dense if r["runtime"] == own_name), None)
    return {"runtime": made["runtime"], "ms": ms, "dense_ms": best, "gains": made["gains"],
            "bytes": own["bytes"], "dense_bytes": there, "metric": own["metric"],
            "error": own["error"]}  # fmt: skip


def write_page() -> None:
    """``docs/gallery.md`` and its pictures from the rows that are kept."""
    import gallery_page

    known = {r.name: r for r in ROWS}
    lines = ROWS_FILE.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    rows = [(known[r["name"]], r) for r in found if r["name"] in known]
    rows.sort(key=lambda pair: list(known).index(pair[0].name))
    gallery_page.write(rows, PAGE, PICTURES)
    print(f"wrote {PAGE}")


def keep(found: dict[str, Any]) -> None:
    """Put a row into the file, in the place of an older one of its name."""
    lines = ROWS_FILE.read_text().splitlines() if ROWS_FILE.exists() else []
    others = [line for line in lines if json.loads(line)["name"] != found["name"]]
    ROWS_FILE.write_text("\n".join([*others, json.dumps(found)]) + "\n")


def main() -> None:
    """Run what is asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--only", nargs="*", choices=[r.name for r in ROWS])
    parser.add_argument("--page", action="store_true", help="only write the page again")
    chosen = parser.parse_args()
    if not chosen.page:
        if chosen.data is None:
            parser.error("--data: the folder that holds cifar10, movie-reviews and so on")
        chosen.out.mkdir(parents=True, exist_ok=True)
        for row in ROWS:
            if chosen.only is None or row.name in chosen.only:
                keep(run(row, chosen.data, chosen.out))
    write_page()


if __name__ == "__main__":
    main()
