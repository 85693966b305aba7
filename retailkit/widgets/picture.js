// Draws the image on a canvas, marks the region under the mouse, and reports clicks and Enter to Python.
function render({ model, el }) {
  const canvas = document.createElement("canvas"), hint = document.createElement("div");
  const shade = document.createElement("canvas");
  let bitmap = null, hovered = -1;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  hint.className = "rk-hint";
  hint.setAttribute("aria-live", "polite");
  el.classList.add("rk-picture");
  el.append(canvas, hint);
  const labels = () => {
    const bytes = model.get("labels");
    return new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  };
  function draw() {
    if (!bitmap) return;
    const context = canvas.getContext("2d"), [rows, columns] = model.get("shape"), at = labels();
    context.drawImage(bitmap, 0, 0);
    hint.textContent = hovered < 0 ? model.get("hint") : model.get("names")[hovered];
    if (hovered < 0) return;
    const mark = new ImageData(columns, rows);
    for (let i = 0; i < at.length; i++) {
      if (at[i] !== hovered) continue;
      const edge = [i - 1, i + 1, i - columns, i + columns].some((j) => at[j] !== hovered);
      mark.data.set([20, 20, 20, edge ? 255 : 40], 4 * i);
    }
    shade.width = columns; shade.height = rows;
    shade.getContext("2d").putImageData(mark, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(shade, 0, 0, canvas.width, canvas.height);
  }
  async function load() {
    const bytes = model.get("png");
    canvas.setAttribute("aria-label", model.get("alt"));
    if (!bytes || !bytes.byteLength) return;
    const fresh = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (bytes !== model.get("png")) return;
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
  function move(label) { if (label !== hovered) { hovered = label; draw(); } }
  canvas.addEventListener("pointermove", (event) => move(find(event)));
  canvas.addEventListener("pointerleave", () => move(-1));
  canvas.addEventListener("click", (event) => choose(find(event)));
  canvas.addEventListener("keydown", (event) => {
    const count = model.get("names").length;
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && count) move((hovered + step + count) % count);
    else if (event.key === "Enter" || event.key === " ") choose(hovered);
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  model.on("change:png", load);
  model.on("change:labels", draw);
  load();
}
export default { render };
