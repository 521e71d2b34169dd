"use strict";
// Draws the figures when they come into view, in the page's colours; sorts and filters tables; switches studies.
(() => {
  const root = document.documentElement;
  const drawn = new Map();

  // A place has the page's colours, or its own where it is paper on a dark page.
  function template(place) {
    const style = getComputedStyle(place);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid"),
      tickcolor: colour("--line"), automargin: true, title: { standoff: 10 },
    };
    return {
      layout: {
        font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12.5 },
        xaxis: axis, yaxis: axis, colorway: undefined,
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
        legend: { bgcolor: "rgba(0,0,0,0)" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
      },
      data: { parcoords: [{ labelfont: { color: colour("--ink") }, tickfont: { color: colour("--quiet") }, rangefont: { color: colour("--quiet") } }] },
    };
  }

  function draw(place) {
    if (drawn.has(place)) return;
    const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    figure.layout.template = template(place);
    drawn.set(place, figure);
    Plotly.newPlot(place, figure.data, figure.layout, {
      responsive: true, displaylogo: false, displayModeBar: !place.closest(".panels"),
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
    });
  }

  function recolour() {
    for (const place of drawn.keys()) Plotly.relayout(place, { template: template(place) });
  }

  const visible = (place) => place.offsetParent !== null;
  const places = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver(
    (entries) => entries.forEach((entry) => { if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); } }),
    { rootMargin: "600px" },
  );
  places.forEach((place) => watcher.observe(place));

  // Colours: as the system says, or as chosen; paper is light.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  system.addEventListener("change", recolour);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    recolour();
  });
  let before;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    places.filter(visible).forEach(draw);
    recolour();
  });
  addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme; else root.dataset.theme = before;
    recolour();
  });

  // Tables.
  for (const table of document.querySelectorAll("table.data:not(.plain)")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
      };
      const rows = [...body.rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true })) * (ascending ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
    }));
  }
  for (const filters of document.querySelectorAll(".filters")) {
    const rows = [...document.getElementById(filters.dataset.table).tBodies[0].rows];
    const words = filters.querySelector("input");
    const choices = [...filters.querySelectorAll("select")];
    const output = filters.querySelector("output");
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const apply = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, at) => {
        const fits = wanted.every((word) => texts[at].includes(word))
          && choices.every((choice) => !choice.value || row.dataset[choice.dataset.column] === choice.value);
        row.hidden = !fits;
        shown += fits;
      });
      output.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
    };
    filters.addEventListener("input", apply);
    apply();
  }

  // Studies.
  for (const chooser of document.querySelectorAll(".chooser")) {
    const panels = [...document.querySelectorAll(`.detail[data-group="${chooser.dataset.group}"]`)];
    const show = () => panels.forEach((panel, at) => { panel.hidden = at !== Number(chooser.value); });
    chooser.addEventListener("change", show);
    show();
  }
})();
