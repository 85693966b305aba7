"""Widget cells never hang a headless run: without the runner's shim about one `interact` cell in fifty does."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

RUNS = int(os.environ.get("RETAILKIT_WIDGET_RUNS", "20"))
CELL_SECONDS = 20  # a hang is a cell that never ends; a loaded machine is merely slow

EXPLORER = """
import io
import ipywidgets as W
from PIL import Image


def png(level):
    stream = io.BytesIO()
    Image.new("L", (8, 8), level).save(stream, "png")
    return stream.getvalue()


slider, picture, text = W.IntSlider(max=9), W.Image(value=png(0)), W.HTML("0")


def draw(change):
    picture.value, text.value = png(change["new"]), str(change["new"])


slider.observe(draw, names="value")
display(W.VBox([slider, picture, text]))
for level in (1, 2, 3):
    slider.value = level
assert text.value == "3"
"""
INTERACT = (
    "shown = W.interact(lambda level: print(level), level=W.IntSlider(max=9))\nshown.widget.children[0].value = 5"
)


def write_notebook(path):
    cells = [nbformat.v4.new_code_cell(EXPLORER)]
    cells += [nbformat.v4.new_code_cell(EXPLORER if i % 2 else INTERACT) for i in range(6)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.mark.timeout(20 * RUNS + 120)
def test_no_run_of_a_notebook_with_widgets_hangs(tmp_path):
    notebook = tmp_path / "widgets.ipynb"
    write_notebook(notebook)
    batches = [range(RUNS)[i::2] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda numbers: run_many(notebook, numbers), batches))
    codes = [code for batch in outputs for code in batch]
    assert len(codes) == RUNS and not any(codes), f"{sum(map(bool, codes))} of {RUNS} runs hung or failed"


def run_many(notebook, numbers):
    """Execute the notebook once a number, by the runner's own function, in one process; return the exit codes."""
    order = {"input": str(notebook), "parameters": {}, "timeout": CELL_SECONDS}
    orders = [order | {"output": str(notebook.with_name(f"out{n}.ipynb"))} for n in numbers]
    script = (
        "import json, sys; from retailkit.runs.papermill import main\n"
        "print('codes', json.dumps([main(order) for order in json.loads(sys.argv[1])]))"
    )
    done = subprocess.run([sys.executable, "-c", script, json.dumps(orders)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("codes ")]
    assert lines, done.stderr[-2000:]
    print(done.stdout[-500:])
    return json.loads(lines[-1].removeprefix("codes "))
