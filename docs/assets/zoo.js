// The zoo page: sorting, filters, and links between chart and table. docs/builder/zoo.py writes the page.
"use strict";

(() => {
  const find = (root, selector) => Array.from(root.querySelectorAll(selector));

  function button(text, label) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    return made;
  }

  // Missing values come last in both directions, and equal values keep the order of the page.
  function compare(a, b, numeric, direction) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = numeric ? [Number(a), Number(b)] : [a, b];
    return x < y ? -direction : x > y ? direction : 0;
  }

  function readRow(element) {
    const values = {};
    for (const cell of find(element, "[data-value]")) {
      values[cell.className.match(/zoo-(\w+)/)[1]] = cell.dataset.value;
    }
    return { element, values, ...element.dataset };
  }

  // Columns with a limit, and the values of one unit of the limit.
  const units = { parameters: 1e6, macs: 1e6, memory: 1, latency: 1 };

  function passes(row, state) {
    const words = (state.q || "").toLowerCase().split(/\s+/);
    const limits = Object.keys(units).filter((name) => state[name]);
    return words.every((word) => row.text.includes(word))
      && ["family", "plugin", "license"].every((name) => !state[name] || row[name] === state[name])
      && (!state.weights || row.weights !== "")
      && limits.every((name) => row.values[name] !== "" && Number(row.values[name]) <= Number(state[name]) * units[name]);
  }

  function start(zoo) {
    const form = zoo.querySelector("form");
    const body = zoo.querySelector("tbody");
    const headers = find(zoo, "th[data-key]");
    const rows = Array.from(body.rows, readRow);
    const points = find(zoo, ".zoo-point");
    const count = zoo.querySelector(".zoo-count");
    const said = zoo.querySelector(".zoo-said");
    const panel = zoo.querySelector(".zoo-panel");
    const rowOf = new Map(points.map((point) => [point, document.getElementById(point.getAttribute("href").slice(1))]));
    const pointOf = new Map(Array.from(rowOf, ([point, row]) => [row, point]));
    let sorted = { key: "", direction: 1 };
    let current = null; // the point with the open panel
    let untold = false; // whether a finger touched a point without an open panel

    // The state of the page, which is the part of its address after #.
    function written() {
      const state = new URLSearchParams();
      for (const [name, value] of new FormData(form)) if (value.trim()) state.set(name, value.trim());
      if (sorted.key) state.set("sort", (sorted.direction < 0 ? "-" : "") + sorted.key);
      return state;
    }

    function restore() {
      const hash = location.hash.slice(1);
      if (hash && !hash.includes("=")) return; // the address of a row
      const state = new URLSearchParams(hash);
      for (const control of form.elements) {
        if (control.type === "checkbox") control.checked = state.has(control.name);
        else if (control.name) control.value = state.get(control.name) || "";
        if (control.selectedIndex < 0) control.selectedIndex = 0;
      }
      const [, minus, key] = /^(-?)(.*)$/.exec(state.get("sort") || "");
      sorted = { key: headers.some((th) => th.dataset.key === key) ? key : "", direction: minus ? -1 : 1 };
      show();
    }

    // Latencies of the chosen machine and runtime: first quartile, median and third quartile.
    function choose() {
      const source = form.elements.on;
      if (!source) return;
      for (const row of rows) {
        const cell = row.element.querySelector(".zoo-latency");
        const times = JSON.parse(cell.dataset.times)[source.value || source.dataset.default];
        const [low, median, high] = times || [];
        row.values.latency = times ? String(median) : "";
        cell.dataset.value = row.values.latency;
        cell.textContent = times ? median.toFixed(2) : "–";
        if (times) {
          const quartiles = document.createElement("small");
          quartiles.textContent = `${low.toFixed(2)}–${high.toFixed(2)}`;
          cell.append(quartiles);
        }
      }
    }

    function show() {
      choose();
      sort();
      filter();
    }

    function changed() {
      const state = written().toString();
      history.replaceState(history.state, "", state ? `#${state}` : location.pathname + location.search);
      show();
    }

    function sort() {
      const header = headers.find((th) => th.dataset.key === sorted.key);
      const numeric = header && header.dataset.type === "number";
      const { key, direction } = sorted;
      const order = key ? [...rows].sort((a, b) => compare(a.values[key], b.values[key], numeric, direction)) : rows;
      body.append(...order.map((row) => row.element));
      for (const th of headers) {
        if (th === header) th.setAttribute("aria-sort", direction < 0 ? "descending" : "ascending");
        else th.removeAttribute("aria-sort");
      }
    }

    function filter() {
      const state = Object.fromEntries(written());
      let left = 0;
      for (const row of rows) {
        const kept = passes(row, state);
        row.element.hidden = !kept;
        left += kept;
        const point = pointOf.get(row.element);
        if (point) {
          point.classList.toggle("zoo-out", !kept);
          point.setAttribute("aria-hidden", String(!kept));
        }
      }
      const names = new Set(shown().map((point) => point.dataset.name));
      for (const label of find(zoo, ".zoo-labels text")) label.classList.toggle("zoo-out", !names.has(label.dataset.name));
      count.textContent = `${left} of ${rows.length} rows`;
      if (current && rowOf.get(current).hidden) tell(null);
      rove(current);
    }

    // The Tab key reaches one point, and arrow keys move to the others.
    const shown = () => points.filter((point) => !rowOf.get(point).hidden);
    function rove(to) {
      const chosen = to || shown()[0];
      for (const point of points) point.setAttribute("tabindex", point === chosen ? "0" : "-1");
    }

    function tell(point) {
      if (current) current.classList.remove("zoo-lit");
      current = point;
      panel.hidden = !point;
      if (!point) return;
      rove(point);
      point.classList.add("zoo-lit");
      const lines = ["name", "weights", "accuracy", "macs", "parameters"].map((fact) => {
        const line = document.createElement(fact === "name" ? "strong" : "span");
        line.textContent = point.dataset[fact];
        return line;
      });
      panel.replaceChildren(...lines);
      const plot = panel.parentElement.getBoundingClientRect();
      const mark = point.querySelector(".zoo-mark").getBoundingClientRect();
      const left = mark.left + mark.width / 2 - plot.left - panel.offsetWidth / 2;
      const above = mark.top - plot.top - panel.offsetHeight - 10;
      panel.style.left = `${Math.max(0, Math.min(left, plot.width - panel.offsetWidth))}px`;
      panel.style.top = `${above < 0 ? mark.bottom - plot.top + 10 : above}px`;
    }

    function jump(point) {
      const row = rowOf.get(point);
      tell(null);
      row.tabIndex = -1;
      row.scrollIntoView({ block: "center" });
      row.focus({ preventScroll: true });
    }

    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -Infinity, End: Infinity };
    function pressed(event) {
      const among = shown();
      if (event.key === "Escape") {
        tell(null);
        zoo.querySelector(".zoo-figure").focus({ preventScroll: true });
      } else if (event.key in moves) {
        const next = among.indexOf(event.currentTarget) + moves[event.key];
        among[Math.max(0, Math.min(next, among.length - 1))].focus();
      } else return;
      event.preventDefault();
    }

    for (const point of points) {
      point.addEventListener("focus", () => tell(point));
      point.addEventListener("blur", () => tell(null));
      point.addEventListener("keydown", pressed);
      point.addEventListener("pointerenter", (event) => event.pointerType === "touch" || tell(point));
      point.addEventListener("pointerleave", (event) => event.pointerType === "touch" || tell(null));
      point.addEventListener("pointerdown", (event) => {
        untold = event.pointerType === "touch" && current !== point;
      });
      point.addEventListener("click", (event) => {
        event.preventDefault();
        if (untold) tell(point);
        else jump(point);
        untold = false;
      });
    }

    for (const row of rows) {
      const point = pointOf.get(row.element);
      if (point) {
        row.element.addEventListener("pointerenter", () => point.classList.add("zoo-lit"));
        row.element.addEventListener("pointerleave", () => point.classList.remove("zoo-lit"));
      }
      const code = row.element.querySelector("code");
      const copy = button("Copy", `Copy ${code.textContent}`);
      copy.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(code.textContent);
          said.textContent = `Copied ${code.textContent}`;
          for (const other of find(body, "button")) other.textContent = other === copy ? "Copied" : "Copy";
        } catch {
          // Select the line if the page may not write to the clipboard.
          getSelection().selectAllChildren(code);
        }
      });
      code.before(copy);
    }

    for (const th of headers) {
      const { key, label } = th.dataset;
      const sorter = button(th.textContent, `Sort by ${label}`);
      sorter.addEventListener("click", () => {
        sorted = { key, direction: sorted.key === key ? -sorted.direction : 1 };
        changed();
      });
      th.replaceChildren(sorter);
    }

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", changed);
    form.addEventListener("reset", () => {
      sorted = { key: "", direction: 1 };
      // The controls have their initial values after this event.
      setTimeout(changed);
    });
    window.addEventListener("hashchange", restore);

    for (const element of find(zoo, "[hidden]")) if (element !== panel) element.hidden = false;
    zoo.classList.add("zoo-live");
    show();
    if (location.hash) restore();
  }

  function run() {
    for (const zoo of find(document, ".zoo")) start(zoo);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", run);
  else run();
})();
