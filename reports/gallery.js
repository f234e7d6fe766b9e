// Clouds of points on canvases that turn together: dragged, by two buttons, or by the arrow keys.
"use strict";

const Gallery = (function () {
  const SIDE = 132, SHADES = 6, STEP = Math.PI / 12, FIRST = { yaw: 0.6, pitch: 0.35 };
  const decoded = (text, Kind) => Kind.from(atob(text), (character) => character.charCodeAt(0));
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    return [0, 1, 2, 3, 4, 5, 6, 7].map((number) => style.getPropertyValue(`--c${number}`).trim());
  };

  // Far points first, smaller and paler.
  const draw = (canvas, points, parts, { yaw, pitch }, palette) => {
    const side = Math.round(SIDE * Math.min(devicePixelRatio || 1, 2)), paper = canvas.getContext("2d");
    if (canvas.width !== side) canvas.width = canvas.height = side;
    paper.clearRect(0, 0, side, side);
    const [sin, cos, up, level] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    const large = Math.min(2, (3072 / points.length) ** 0.3);  // few points are drawn larger
    const scale = side / 350, shades = Array.from({ length: SHADES }, () => []);
    for (let k = 0; k < points.length; k += 3) {
      const x = points[k] * cos + points[k + 2] * sin, z = points[k + 2] * cos - points[k] * sin;
      const near = points[k + 1] * up + z * level;
      const shade = Math.max(0, Math.min(SHADES - 1, Math.floor((near / 190 + 1) / 2 * SHADES)));
      shades[shade].push(side / 2 + x * scale, side / 2 - (points[k + 1] * level - z * up) * scale, parts ? parts[k / 3] : 0);
    }
    shades.forEach((shade, number) => {
      const share = number / (SHADES - 1), size = side / SIDE * large * (1.4 + share);
      paper.globalAlpha = 0.35 + 0.65 * share;
      for (let k = 0; k < shade.length; k += 3) {
        paper.fillStyle = palette[shade[k + 2] % palette.length];
        paper.fillRect(shade[k] - size / 2, shade[k + 1] - size / 2, size, size);
      }
    });
  };

  let redraw = () => {};  // of the gallery that is on the page
  new MutationObserver(() => redraw()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

  // A canvas for a cloud as the page's data hold it; `parts` colours its points.
  const cloud = (label, points, parts) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    return { canvas, points: decoded(points, Int8Array), parts: parts === undefined ? null : decoded(parts, Uint8Array) };
  };

  // Makes the clouds inside `group` turn together.
  const turning = (group, clouds, buttons) => {
    const at = { ...FIRST };
    let waiting = false;
    redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const palette = colours();
        for (const { canvas, points, parts } of clouds) draw(canvas, points, parts, at, palette);
      });
    };
    const turn = (yaw, pitch) => {
      at.yaw += yaw;
      at.pitch = Math.max(-1.5, Math.min(1.5, at.pitch + pitch));
      redraw();
    };
    const keys = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    group.addEventListener("keydown", (event) => {
      if (event.key === "Home") Object.assign(at, FIRST);
      if (event.key !== "Home" && !keys[event.key]) return;
      event.preventDefault();
      turn(...(keys[event.key] ?? [0, 0]));
    });
    buttons.forEach((button, number) => button.addEventListener("click", () => turn(number ? STEP : -STEP, 0)));
    let held = null;
    group.addEventListener("pointerdown", (event) => {
      if (event.target.tagName !== "CANVAS") return;
      held = [event.clientX, event.clientY];
      event.target.setPointerCapture(event.pointerId);
    });
    group.addEventListener("pointermove", (event) => {
      if (!held) return;
      turn((event.clientX - held[0]) / 80, (event.clientY - held[1]) / 80);
      held = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) group.addEventListener(end, () => { held = null; });
    redraw();
  };

  return { cloud, turning };
})();
