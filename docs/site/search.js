// Search over INDEX, a list of [address, title, heading, words] of each section, and the menu of narrow windows.
const query = document.getElementById("query"), found = document.getElementById("found");
const menu = document.getElementById("menu"), up = document.body.dataset.up, SHOWN = 20;

function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const score = ([, title, heading, body]) => {
    let sum = 0;
    for (const word of words) {
      const hit = [heading, title, body].findIndex((part) => part.toLowerCase().includes(word));
      if (hit < 0) return 0;
      sum += [20, 5, 1][hit] + (heading.toLowerCase() === word ? 20 : 0);
    }
    return sum;
  };
  if (!words.length) return [];
  return INDEX.map((entry) => [score(entry), entry]).filter(([points]) => points > 0)
    .sort((a, b) => b[0] - a[0]).slice(0, SHOWN).map(([, entry]) => [...entry, words]);
}

function item([address, title, heading, body, words]) {
  const link = Object.assign(document.createElement("a"), { href: up + address, textContent: title });
  if (heading && heading !== title) link.textContent += " › " + heading;
  const at = Math.max(0, Math.min(...words.map((word) => body.toLowerCase().indexOf(word)).filter((n) => n >= 0)));
  const start = Number.isFinite(at) ? Math.max(0, at - 60) : 0;
  const line = document.createElement("li"), text = document.createElement("p");
  text.textContent = (start ? "… " : "") + body.slice(start, start + 160) + (body.length > start + 160 ? " …" : "");
  line.append(link, text);
  return line;
}

query.addEventListener("input", () => {
  const hits = search(query.value), none = document.createElement("li");
  none.textContent = "No page has all of these words.";
  found.replaceChildren(...(hits.length ? hits.map(item) : [none]));
  found.hidden = !query.value.trim();
});
query.form.addEventListener("submit", (event) => {
  event.preventDefault();
  found.querySelector("a")?.click();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") found.hidden = true;
});
found.addEventListener("click", () => { found.hidden = true; });
document.body.classList.add("script");
menu.addEventListener("click", () => {
  menu.setAttribute("aria-expanded", document.body.classList.toggle("open"));
});
