const frames = [...document.querySelectorAll(".frame")], chosen = document.querySelector("#frame");
const show = () => frames.forEach((frame, i) => frame.classList.toggle("now", i === +chosen.value));
chosen?.addEventListener("input", () => { show(); document.querySelector("#which").value = frames[chosen.value].dataset.round; });
if (chosen) { document.body.classList.add("scripted"); show(); }
