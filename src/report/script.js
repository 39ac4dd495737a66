"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light or dark: the system's choice until the button is used.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.classList.contains("dark") || (system.matches && !root.classList.contains("light"));
  const show = (choice) => {
    root.classList.remove("light", "dark");
    if (choice) root.classList.add(choice);
    button.textContent = dark() ? "Light" : "Dark";
  };
  const memory = { get: () => { try { return localStorage.getItem("byol-theme"); } catch { return null; } },
                   set: (value) => { try { localStorage.setItem("byol-theme", value); } catch { /* not from disk */ } } };
  const remembered = memory.get();
  show(remembered === "dark" || remembered === "light" ? remembered : "");
  button.hidden = false;
  button.addEventListener("click", () => { const choice = dark() ? "light" : "dark"; show(choice); memory.set(choice); });
  system.addEventListener("change", () => show(root.classList.contains("dark") ? "dark" : root.classList.contains("light") ? "light" : ""));

  // Tables: a click on a heading sorts, a second one turns the order around.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    const value = (row, at) => {
      const cell = row.cells[at];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const sort = (heading, at) => {
      const falling = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const compare = (a, b) => {
        const [x, y] = [value(a, at), value(b, at)];
        return typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      };
      const rows = [...table.tBodies[0].rows].sort(compare);
      table.tBodies[0].append(...(falling ? rows.reverse() : rows));
    };
    headings.forEach((heading, at) => {
      heading.tabIndex = 0;
      heading.addEventListener("click", () => sort(heading, at));
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(heading, at); });
    });
  }

  // Maps: the image under the pointer, one plane at a time, one class at a time.
  const tip = document.getElementById("tip");
  const [thumbnail, name, label] = tip.children;
  const place = (event) => {
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = event.clientX + 18 + width < innerWidth ? event.clientX + 18 : event.clientX - 18 - width;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.min(Math.max(8, event.clientY - height / 2), innerHeight - height - 8) + "px";
  };
  for (const map of document.querySelectorAll(".map")) {
    const data = JSON.parse(map.querySelector("script").textContent);
    const [tile, columns, scale] = [Number(map.dataset.tile), Number(map.dataset.columns), 2.5];
    const planes = [...map.querySelectorAll("figure")];
    const points = planes.map((plane) => [...plane.querySelectorAll("circle")]);
    points.forEach((circles, plane) => {
      const index = new Map(circles.map((circle, at) => [circle, at]));
      const enter = (event) => {
        const at = index.get(event.target);
        if (at === undefined) return;
        thumbnail.className = map.dataset.sprite;
        const [x, y] = [(at % columns) * tile, Math.floor(at / columns) * tile];
        const rows = Math.ceil(data.names.length / columns);
        Object.assign(thumbnail.style, {
          width: tile * scale + "px", height: tile * scale + "px",
          backgroundPosition: `${-x * scale}px ${-y * scale}px`,
          backgroundSize: `${columns * tile * scale}px ${rows * tile * scale}px`,
        });
        name.textContent = data.names[at];
        label.textContent = data.classes[at];
        tip.hidden = false;
        place(event);
      };
      planes[plane].addEventListener("pointerover", enter);
      planes[plane].addEventListener("pointerdown", enter);
      planes[plane].addEventListener("pointermove", (event) => { if (!tip.hidden) place(event); });
      planes[plane].addEventListener("pointerout", () => { tip.hidden = true; });
    });

    if (planes.length > 1) {
      const bar = document.createElement("div");
      bar.className = "planes";
      const buttons = planes.map((plane) => {
        const choice = document.createElement("button");
        choice.type = "button";
        choice.textContent = plane.dataset.plane;
        bar.append(choice);
        return choice;
      });
      const choose = (chosen) => planes.forEach((plane, at) => {
        plane.hidden = at !== chosen;
        buttons[at].setAttribute("aria-pressed", String(at === chosen));
      });
      buttons.forEach((choice, at) => choice.addEventListener("click", () => choose(at)));
      choose(0);
      map.querySelector(".plane").prepend(bar);
    }

    const classes = [...map.querySelectorAll(".classes li")];
    classes.forEach((item, at) => item.addEventListener("click", () => {
      const on = !item.classList.contains("on");
      classes.forEach((other) => other.classList.toggle("on", on && other === item));
      map.classList.toggle("chosen", on);
      points.forEach((circles) => circles.forEach((circle, point) => circle.classList.toggle("on", on && data.labels[point] === at)));
    }));
  }
})();
