"""A picture that tells Python which of its regions was clicked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anywidget
import numpy as np
import traitlets

from retailkit.widgets.views import png_of

NOWHERE = 65535  # label of pixels that belong to no region
SCRIPT = """
function render({ model, el }) {
  const canvas = document.createElement("canvas"), said = document.createElement("div");
  const shade = document.createElement("canvas");
  let bitmap = null, over = -1;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  said.className = "rk-said";
  said.setAttribute("aria-live", "polite");
  el.classList.add("rk-picture");
  el.append(canvas, said);
  const labels = () => {
    const view = model.get("labels");
    return new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  };
  function draw() {
    if (!bitmap) return;
    const ink = canvas.getContext("2d"), [rows, columns] = model.get("shape"), at = labels();
    ink.drawImage(bitmap, 0, 0);
    said.textContent = over < 0 ? model.get("hint") : model.get("names")[over];
    if (over < 0) return;
    const mark = new ImageData(columns, rows);
    for (let i = 0; i < at.length; i++) {
      if (at[i] !== over) continue;
      const edge = [i - 1, i + 1, i - columns, i + columns].some((j) => at[j] !== over);
      mark.data.set([20, 20, 20, edge ? 255 : 40], 4 * i);
    }
    shade.width = columns; shade.height = rows;
    shade.getContext("2d").putImageData(mark, 0, 0);
    ink.imageSmoothingEnabled = false;
    ink.drawImage(shade, 0, 0, canvas.width, canvas.height);
  }
  async function load() {
    const view = model.get("png");
    canvas.setAttribute("aria-label", model.get("alt"));
    if (!view || !view.byteLength) return;
    const fresh = await createImageBitmap(new Blob([view], { type: "image/png" }));
    if (view !== model.get("png")) return;
    bitmap = fresh;
    canvas.width = bitmap.width; canvas.height = bitmap.height;
    draw();
  }
  function find(event) {
    const box = canvas.getBoundingClientRect(), [rows, columns] = model.get("shape");
    const x = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const y = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const label = labels()[Math.min(y, rows - 1) * columns + Math.min(x, columns - 1)];
    return label < model.get("names").length ? label : -1;
  }
  function choose(label) {
    if (label < 0) return;
    model.set("clicked", [label, model.get("clicked")[1] + 1]);
    model.save_changes();
  }
  function move(label) { if (label !== over) { over = label; draw(); } }
  canvas.addEventListener("pointermove", (event) => move(find(event)));
  canvas.addEventListener("pointerleave", () => move(-1));
  canvas.addEventListener("click", (event) => choose(find(event)));
  canvas.addEventListener("keydown", (event) => {
    const count = model.get("names").length;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && count) move((over + step + count) % count);
    else if (event.key === "Enter" || event.key === " ") choose(over);
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  model.on("change:png", load);
  model.on("change:labels", draw);
  load();
}
export default { render };
"""
STYLE = """
.rk-picture canvas { max-width: 100%; display: block; cursor: pointer; border-radius: 4px; }
.rk-picture canvas:focus-visible { outline: 3px solid #0072B2; }
.rk-said { font: 12px system-ui, sans-serif; color: #444; min-height: 2.4em; overflow: hidden; max-width: 100%; }
"""


class Picture(anywidget.AnyWidget):
    """A picture of regions; a click, or Enter after the arrow keys, sets `clicked`.

    Attributes:
        png: the picture.
        labels: uint16 of rows x columns, row by row: the region of each pixel, `NOWHERE` for none.
        shape: rows and columns of `labels`; the picture may be larger.
        names: what is said of each region under the mouse.
        hint: what is said where there is none.
        alt: what the picture shows, for those who do not see it.
        clicked: region and number of the click.
    """

    _esm = SCRIPT
    _css = STYLE
    png = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List([0, 0]).tag(sync=True)
    names = traitlets.List().tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    clicked = traitlets.List([-1, 0]).tag(sync=True)

    def show(self, pixels: np.ndarray, labels: np.ndarray, names: Sequence[str], alt: str, hint: str = "") -> None:
        """Show another picture.

        Args:
            pixels: (H,W,3) uint8.
            labels: (h,w) int, of the same proportions; -1 belongs to no region.
            names: one a region.
            alt: see `alt`.
            hint: see `hint`.
        """
        plain = np.where(labels < 0, NOWHERE, labels).astype("<u2")
        with self.hold_sync():
            self.labels, self.shape = plain.tobytes(), list(plain.shape)
            self.names, self.alt, self.hint = list(names), alt, hint
            self.png = png_of(pixels)

    def on_click(self, act: Callable[[int], None]) -> None:
        """Call `act` with the region of each click."""
        self.observe(lambda change: act(change["new"][0]), names="clicked")
