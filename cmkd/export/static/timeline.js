// The scores over time, above the waveform, and the windows that can be heard by a click.

const LEFT = 36, SCORES = 190, GAP = 14, WAVE = 64, AXIS = 24, TOP = 8;

const svg = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

export const clock = (seconds) => {
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
};

export class Timeline {
  // `holder` is filled; `dimensions` are the names of the scores; `choose` is called with the window that is clicked.
  constructor(holder, dimensions, choose) {
    Object.assign(this, { holder, dimensions, choose });
    new ResizeObserver(() => this.answer && this.draw()).observe(holder);
  }

  show(samples, answer) {
    Object.assign(this, { samples, answer, drawn: 0, playing: undefined });
    this.draw();
  }

  draw() {
    const width = this.holder.clientWidth;
    if (!width || width === this.drawn) return;
    this.drawn = width;
    const { answer, dimensions } = this;
    const bottom = SCORES + GAP + WAVE;
    const x = (this.x = (seconds) => LEFT + ((width - LEFT) * seconds) / answer.duration);
    const y = (value) => SCORES * (1 - Math.min(1, Math.max(0, value)));
    const made = svg("svg", { viewBox: `0 ${-TOP} ${width} ${TOP + bottom + AXIS}`, role: "group" });
    made.setAttribute("aria-label", "Scores over time, above the waveform");
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      made.append(svg("line", { class: "grid", x1: LEFT, x2: width, y1: y(value), y2: y(value) }));
      made.append(svg("text", { x: 0, y: y(value) + 4 }, value.toFixed(2)));
    }
    made.append(this.wave(width - LEFT, SCORES + GAP + WAVE / 2));
    const shown = fromWhereTheLastEnds(answer.timeline);
    for (const name of dimensions)
      for (const silent of [false, true]) {
        const steps = shown.filter(({ window }) => window.silent === silent);
        const path = steps.map(({ from, window }) => `M${x(from)} ${y(window.scores[name])}H${x(window.end)}`).join("");
        if (path) made.append(svg("path", { class: `line ${name}${silent ? " faint" : ""}`, d: path }));
      }
    const most = Math.max(2, Math.floor((width - LEFT) / 64));
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];
    const step = steps.find((seconds) => answer.duration / seconds <= most) ?? 7200;
    for (let count = 0; count * step <= answer.duration; count++) {
      const seconds = count * step;
      if (x(seconds) > width - 18 && count) break;
      const said = step >= 10 ? clock(seconds) : `${Number(seconds.toFixed(1))} s`;
      made.append(svg("text", { x: x(seconds), y: bottom + 17, "text-anchor": count ? "middle" : "start" }, said));
    }
    this.panes = shown.map(({ from, window }, number) => {
      const pane = svg("rect", {
        class: "pane", x: x(from), y: 0, width: x(window.end) - x(from), height: bottom, role: "button",
        tabindex: number ? -1 : 0, "aria-label": `Hear ${said(window)}`,
      });
      const values = dimensions.map((name) => `${name} ${window.scores[name].toFixed(3)}`).join(", ");
      pane.append(svg("title", {}, `${said(window)}: ${values}${window.silent ? " (silent)" : ""}`));
      pane.addEventListener("click", () => this.choose(window));
      pane.addEventListener("keydown", (event) => this.key(event, number));
      return pane;
    });
    this.head = svg("line", { class: "head", y1: 0, y2: bottom, visibility: "hidden" });
    made.append(...this.panes, this.head);
    this.holder.replaceChildren(made);
    this.mark(this.playing);
  }

  // A window is played, or none.
  mark(window) {
    this.playing = window;
    this.panes.forEach((pane, number) => pane.classList.toggle("playing", this.answer.timeline[number] === window));
    if (!window) this.head.setAttribute("visibility", "hidden");
  }

  // Where in the recording it is.
  moveTo(seconds) {
    for (const end of ["x1", "x2"]) this.head.setAttribute(end, this.x(seconds));
    this.head.setAttribute("visibility", "visible");
  }

  key(event, number) {
    if (event.key === "Enter" || event.key === " ") this.choose(this.answer.timeline[number]);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const next = this.panes[number + (event.key === "ArrowRight" ? 1 : -1)];
      if (!next) return;
      this.panes[number].setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    } else return;
    event.preventDefault();
  }

  wave(width, middle) {
    const { samples } = this;
    const columns = Math.floor(width / 2);
    const loudest = samples.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    let path = "";
    for (let column = 0; column < columns; column++) {
      const from = Math.floor((column * samples.length) / columns);
      const to = Math.max(from + 1, Math.floor(((column + 1) * samples.length) / columns));
      let most = 0;
      for (let index = from; index < to && index < samples.length; index++) most = Math.max(most, Math.abs(samples[index]));
      const half = Math.max(0.5, (WAVE / 2) * (most / loudest));
      path += `M${(LEFT + (width * (column + 0.5)) / columns).toFixed(1)} ${(middle - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
    }
    return svg("path", { class: "wave", d: path });
  }
}

const said = (window) => `${window.start.toFixed(2)} to ${window.end.toFixed(2)} s`;

// The last window overlaps the one before: it is shown from where that ends.
function fromWhereTheLastEnds(timeline) {
  return timeline.map((window, number) => ({ window, from: number ? timeline[number - 1].end : window.start }));
}
