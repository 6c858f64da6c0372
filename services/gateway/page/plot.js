// A small plot of the last two minutes, one value a second.

const WIDTH = 240, HEIGHT = 44, SECONDS = 120;

export class Plot {
  constructor(svg) {
    this.values = [];
    this.path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.append(this.path);
  }
  set(values) {
    this.values = values.slice(-SECONDS);
    this.draw();
  }
  add(value) {
    this.set([...this.values, value]);
  }
  draw() {
    const most = Math.max(1, ...this.values);
    const start = SECONDS - this.values.length;
    const points = this.values.map((value, i) =>
      `${((start + i + 1) / SECONDS * WIDTH).toFixed(1)},${(HEIGHT - 2 - value / most * (HEIGHT - 6)).toFixed(1)}`);
    const from = (start + 1) / SECONDS * WIDTH;
    this.path.setAttribute("d", points.length ? `M${from},${HEIGHT} L${points.join(" L")} L${WIDTH},${HEIGHT} Z` : "");
  }
}
