// Sends a photo to Python, and says that it is on its way or too large to go.
function render({ model, el }) {
  const button = document.createElement("button"), field = document.createElement("input");
  const note = document.createElement("span");
  Object.assign(button, { type: "button", textContent: "Upload a photo", title: "Explain a photo of your own" });
  button.className = "jupyter-button widget-button rk-upload";
  button.style.width = "auto";
  Object.assign(field, { type: "file", accept: "image/*", hidden: true });
  note.setAttribute("role", "status");
  el.append(button, field, note);
  button.addEventListener("click", () => field.click());
  field.addEventListener("change", async () => {
    const file = field.files[0], limit = model.get("megabytes");
    field.value = "";
    if (!file) return;
    const size = (file.size / 1e6).toFixed(1);
    if (file.size > limit * 1e6) {
      note.textContent = ` ${file.name}: ${size} MB is more than ${limit} MB; make the photo smaller`;
      return;
    }
    note.textContent = ` Uploading and reading ${file.name} (${size} MB) …`;
    model.send({ name: file.name }, undefined, [await file.arrayBuffer()]);
  });
  model.on("msg:custom", () => { note.textContent = ""; });
}
export default { render };
