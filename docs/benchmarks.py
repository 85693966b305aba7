"""Write docs/benchmarks.md and its chart from the tables beside it, which `retailkit bench --csv` made."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from retailkit import metrics, plots

HERE = Path(__file__).parent
ENDS = (".csv", "_growth.csv", "_lime_photos.csv", ".md", ".png")
RATIOS, GROWTH, LIME, PAGE, CHART = (HERE / f"benchmarks{end}" for end in ENDS)
TEXT = """# Benchmarks

`retailkit bench` does the same work in two ways, in turn, on the same machine. It reports how many times as fast the
form of this package is, and by how much the results differ. {ratios} cases are below. Ratios depend on the machine,
too, but less than seconds do.

**The machine** has two cores (AMD EPYC) with AVX-512 and bfloat16, and did other work at the same time. The work of a
single process is therefore timed by the processor. Rows `app`, `train`, `ocr`, `render`, `run` and `scale` are times by
the clock: `app` and `scale` were measured with nothing beside them, the others beside other work, so take them as
rough. The row of 64 photos without disks of their own comes from a slower machine. So does `run`: that machine has no
AVX-512, and small tests ran beside its one worker. Of our own ways, only matching computes in bfloat16.

**To repeat it**: `retailkit bench lca nts --csv mine.csv` runs benchmarks by name, `retailkit bench --quick` all of
them in short; `retailkit bench --csv docs/benchmarks.csv --force` and `python docs/benchmarks.py` make this page anew.

## Beside plain forms and other libraries

Agreement is the largest difference between the two results, unless the row says otherwise. It is empty where results
cannot differ.

{table}

**Explanations of an image** (rows `lime`) take the fewest masks of ours that are as good as the 1,000 of another
library: as stable between seeds, and with as small an area under the deletion curve. Beside lime, no number of masks
passes this test of the benchmark: with 512 masks, stability minus that of lime is {stability}, and the area minus that
of lime is {deletion} ({photos} photos, {seeds} seeds, 95 % intervals over photos). So stability is higher, and the
areas are not shown to differ.

**Explanations do not use bfloat16** (row `lime: bfloat16`). It would be faster. But on most photos it agrees too little
with float32 for one of the three classes that are explained by default, and the same seed would give other
explanations on other processors.

## How time and memory grow

The exponent is the slope of a straight line through the logarithms of size and processor seconds (least squares); 1
means that twice the size takes twice as long. Beside it stands the exponent of the number of operations at the same
sizes. A smaller one than expected means that a fixed part of the work still counts at these sizes. Memory is what one
call adds at most to what the process already holds.

{growth}

![Time against size, both relative to the smallest size: {curves} curves on logarithmic axes](benchmarks.png)
"""


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def gap(photos: pd.DataFrame, what: str) -> str:
    """Return what 512 masks of ours have more than lime, averaged over photos, and its interval."""
    found = (photos[f"{what}_512"] - photos[f"{what}_lime"]).to_numpy()
    low, high = metrics.bootstrap(found)
    return f"{found.mean():.4f} ({low:.4f} to {high:.4f})"


def page(ratios: pd.DataFrame, growth: pd.DataFrame, lime: pd.DataFrame) -> str:
    """Return the page of all tables."""
    photos = lime[lime["photo"].str.contains("/")]  # the other rows are means and intervals
    shown = pd.DataFrame(
        {
            "what": ratios["name"] + ": " + ratios["case"],
            "beside": ratios["baseline"],
            "times as fast": ratios["ratio"].map(lambda ratio: f"{ratio:.3g}" if ratio < 100 else f"{ratio:.0f}"),
            "agreement": ratios["agreement"].map(lambda value: "" if pd.isna(value) else f"{value:.1g}"),
        }
    )
    rows = [
        {
            "what grows": name,
            "from": part["size"].iloc[0],
            "to": part["size"].iloc[-1],
            "exponent": f"{part['exponent'].iloc[0]:.2f}",
            "expected": f"{part['expected'].iloc[0]:.2f}",
            "seconds at the largest": f"{part['seconds'].iloc[-1]:.2g}",
            "memory there, MB": f"{part['memory_mb'].iloc[-1]:.0f}",
        }
        for name, part in growth.groupby("curve", sort=False)
    ]
    parts = {"table": markdown(shown), "growth": markdown(pd.DataFrame(rows))}
    parts |= {what: gap(photos, what) for what in ("stability", "deletion")}
    parts |= {"photos": len(photos), "seeds": photos["seeds"].astype(int).max()}
    return TEXT.format(ratios=len(ratios), curves=len(rows), **parts)


def chart(growth: pd.DataFrame) -> plt.Figure:
    """Draw time against size, both relative to the smallest: what grows with a side, and all else."""
    plots.use_style()
    first = growth.groupby("curve")[["size", "seconds"]].transform("first")
    growth = growth.assign(times=growth["size"] / first["size"], time=growth["seconds"] / first["seconds"])
    figure, axes = plt.subplots(1, 2, figsize=(13, 4))
    by_side = growth["curve"].str.contains("side")
    for ax, rows, title in zip(axes, (by_side, ~by_side), ("with a side", "with a number"), strict=True):
        plots.curves(growth[rows], "times", "size, times the smallest", ax, y="time", by="curve")
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", ylabel="time, times that of the smallest", title=f"Growth {title}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    measured = [pd.read_csv(path) for path in (RATIOS, GROWTH, LIME)]
    PAGE.write_text(page(*measured), encoding="utf-8")
    CHART.write_bytes(plots.png(chart(measured[1])))
