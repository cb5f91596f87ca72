const frames = [...document.querySelectorAll(".frame")], chosen = document.querySelector("#frame");
const show = () => frames.forEach((frame, i) => { frame.classList.toggle("now", i === +chosen.value); if (i === +chosen.value) document.querySelector("#which").value = frame.dataset.round; });
if (chosen) { document.body.classList.add("scripted"); chosen.addEventListener("input", show); show(); }
