"use strict";
(() => {
  const bar = document.getElementById("bar");
  const articles = () => [...document.querySelectorAll("article")].filter((one) => !one.hidden);
  let current = null;

  function tell(token) {
    if (current) current.classList.remove("on");
    current = token;
    if (!token) { bar.hidden = true; return; }
    token.classList.add("on");
    const place = [...token.parentElement.children].indexOf(token) + 1;
    bar.textContent = `token ${place}: ${token.title} · ${JSON.stringify(token.textContent.replaceAll("↵\n", "\n"))}`;
    bar.hidden = false;
  }

  const tokenOf = (target) => (target instanceof Element ? target.closest("pre > b, pre > i") : null);
  document.addEventListener("mouseover", (event) => tell(tokenOf(event.target)));
  document.addEventListener("click", (event) => { const token = tokenOf(event.target); if (token) tell(token); });

  for (const section of document.querySelectorAll("section")) {
    const input = section.querySelector("input"), select = section.querySelector("select");
    if (!input) continue;
    const rows = [...section.querySelectorAll("article")];
    const texts = rows.map((row) => row.textContent.replaceAll("↵\n", "\n").toLowerCase());
    const shown = section.querySelector(".shown");
    const filter = () => {
      const wanted = input.value.toLowerCase(), kind = select.value;
      rows.forEach((row, number) => {
        row.hidden = !(texts[number].includes(wanted) && (!kind || row.dataset.kinds.split(" ").includes(kind)));
      });
      shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
    };
    input.addEventListener("input", filter);
    select.addEventListener("change", filter);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { input.value = ""; select.value = ""; filter(); input.blur(); }
    });
    filter();
  }

  function reveal() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.matches("article")) { target.hidden = false; target.focus(); }
  }
  window.addEventListener("hashchange", reveal);
  reveal();

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const rows = articles(), here = rows.indexOf(document.activeElement);
    if (event.key === "j" || event.key === "k") {
      const next = event.key === "j" ? Math.min(here + 1, rows.length - 1) : Math.max(here - 1, 0);
      if (rows.length) { tell(null); rows[next].focus(); }
    } else if (event.key === "/") {
      const input = document.querySelector("input");
      if (input) { event.preventDefault(); input.focus(); }
    } else if (event.key === "Escape") {
      tell(null);
    } else if (here >= 0 && (event.key === "ArrowRight" || event.key === "ArrowLeft")) {
      const tokens = rows[here].querySelectorAll("pre > b, pre > i");
      const at = current && rows[here].contains(current) ? [...tokens].indexOf(current) : -1;
      const next = event.key === "ArrowRight" ? Math.min(at + 1, tokens.length - 1) : Math.max(at - 1, 0);
      if (tokens.length) { event.preventDefault(); tell(tokens[next]); tokens[next].scrollIntoView({ block: "nearest" }); }
    }
  });
})();
