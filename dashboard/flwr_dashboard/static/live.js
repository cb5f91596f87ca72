"use strict"; // Keeps a page up to date: asks with the stamps of its parts, swaps those that changed.
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const slider = one("input[name=round]"), play = one("#play");
let timer, asking = 0, following = slider && !new URL(location).searchParams.has("round");
async function poll() {
  clearTimeout(timer);
  let mine = ++asking, wait = 1000;
  if (!document.hidden) try {
    const url = new URL(location);
    url.searchParams.set("have", all("[data-part]").map(p => `${p.id}:${p.dataset.hash}`).join());
    const reply = await fetch(url.href.split("#")[0]);
    if (!reply.ok) throw new Error(reply.status);
    const parts = reply.status === 200 ? await reply.json() : {};
    if (reply.headers.has("x-behind")) wait = 200;
    for (const [name, part] of Object.entries(parts)) if (mine === asking) await swap(one("#" + name), part);
    one("#lost").hidden = true; } catch { one("#lost").hidden = false; }
  if (mine === asking) timer = setTimeout(poll, wait);
}
async function swap(old, part) {
  const fresh = document.createElement("template"), here = document.activeElement;
  fresh.innerHTML = part.html;
  if (old.contains(here) && !here.matches("a, summary, .scroll, [name=id]")) return; // it would lose the focus
  await Promise.all(all("image", fresh.content).map(i => Object.assign(new Image(), {src: i.getAttribute("href")}).decode().catch(() => 0))); // or they flash
  const key = e => `${e.tagName} ${e.getAttribute("href") ?? e.getAttribute("aria-label") ?? e.parentElement.id}`;
  const open = all("details[open]", old).map(d => d.id), focused = old.contains(here) && key(here);
  const ticked = all("input:checked", old).map(t => t.value), spots = all(".scroll", old).map(s => [s.scrollLeft, s.scrollTop]);
  old.replaceChildren(fresh.content), old.dataset.hash = part.stamp;
  all("details", old).forEach(d => { d.open = open.includes(d.id); });
  all("input[name=id]", old).forEach(tick => { tick.checked = ticked.includes(tick.value); });
  all(".scroll", old).forEach((s, i) => spots[i] && s.scrollTo(...spots[i]));
  all("a, summary, .scroll, [name=id]", old).find(e => key(e) === focused)?.focus({preventScroll: true});
  if (old.id === "newest" && slider) [slider.min, slider.max] = part.html.split(" ");
  if (slider && following) one("#which").value = slider.value = slider.max;
}
const go = url => { history.replaceState(null, "", url); poll(); };
for (const form of all("form[data-live]")) form.addEventListener("input", () => {
  const url = new URL(location), said = new FormData(form);
  for (const {name} of form.elements) if (name && name !== "id") said.get(name) ? url.searchParams.set(name, said.get(name)) : url.searchParams.delete(name);
  if (slider && (following = slider.value === slider.max)) url.searchParams.delete("round");
  if (slider) one("#which").value = slider.value;
  go(url);
});
document.addEventListener("click", event => {
  const link = event.target.closest("a[data-live]"), copy = event.target.closest("[data-copy]");
  if (copy) navigator.clipboard.writeText(one("#" + copy.dataset.copy).textContent);
  if (!link || event.ctrlKey || event.metaKey || new URL(link.href).pathname !== location.pathname) return;
  event.preventDefault();
  go(link.href);
});
play?.addEventListener("click", () => play.setAttribute("aria-pressed", play.getAttribute("aria-pressed") !== "true"));
setInterval(() => {
  if (play?.getAttribute("aria-pressed") !== "true") return;
  slider.value = slider.value === slider.max ? slider.min : +slider.value + 1;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
}, 700);
document.addEventListener("visibilitychange", poll), timer = setTimeout(poll, 1000);
