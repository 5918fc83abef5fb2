// A face that shows the mix of emotions. Decoration: the faders say the same to a screen reader.

const SPACE = "http://www.w3.org/2000/svg";
const COLOURS = [
  [247, 190, 52], [231, 86, 72], [92, 142, 222], [146, 118, 214], [122, 172, 74], [112, 140, 176], [240, 130, 186], [64, 182, 164],
];
const NEUTRAL = [240, 214, 180];

function node(parent, name, attributes) {
  const found = parent.querySelector(`[data-name="${attributes["data-name"]}"]`);
  const element = found ?? parent.appendChild(document.createElementNS(SPACE, name));
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
}

const limit = (value, low = -1, high = 1) => Math.max(low, Math.min(high, value));

function skin(positions) {
  const sum = positions.reduce((a, b) => a + b, 0);
  const share = Math.min(1, sum);
  const mixed = NEUTRAL.map((base, k) => {
    const own = positions.reduce((total, position, i) => total + position * COLOURS[i][k], 0) / (sum || 1);
    return Math.round(base * (1 - share) + own * share);
  });
  return `rgb(${mixed.join(" ")})`;
}

/** Draw into an SVG of 100 by 100 units; `positions` are the eight faders. */
export function drawFace(svg, positions) {
  const [happy, angry, sad, afraid, disgusted, melancholic, surprised, calm] = positions;
  const smile = limit(0.25 + happy + calm * 0.4 - sad - melancholic * 0.7 - angry * 0.7 - disgusted * 0.6 - afraid * 0.5);
  const open = limit(surprised + afraid * 0.5 + happy * 0.35 + angry * 0.3 - calm * 0.3, 0);
  const inner = limit(sad * 0.8 + afraid * 0.8 + melancholic * 0.8 - angry * 1.1 - disgusted * 0.5);
  const raise = limit(surprised + afraid * 0.5 + happy * 0.2 - angry * 0.4);
  const eyes = limit(1 + surprised * 0.6 + afraid * 0.5 - calm * 0.75 - melancholic * 0.45 - disgusted * 0.45 - happy * 0.15, 0.12, 1.7);
  const slant = limit(disgusted, 0) * 5;
  node(svg, "circle", { "data-name": "head", cx: 50, cy: 50, r: 44, fill: skin(positions) });
  for (const [side, x] of [[-1, 33], [1, 67]]) {
    const high = 31 - raise * 7;
    node(svg, "ellipse", { "data-name": `eye${side}`, cx: x, cy: 46, rx: 4.6, ry: 6.2 * eyes, class: "ink" });
    node(svg, "path", {
      "data-name": `brow${side}`,
      d: `M${x + side * 9} ${high + inner * 4 + (side > 0 ? -slant : 0)} Q${x} ${high - 3} ${x - side * 8} ${high - inner * 6}`,
      class: "line",
    });
  }
  const [top, bottom] = [68 + smile * -1 + slant / 3, 68 + smile * 12];
  const low = bottom + open * 16;
  node(svg, "path", {
    "data-name": "mouth",
    d: `M34 ${top - smile * 3} Q50 ${bottom - open * 7} 66 ${top - smile * 3 - slant} Q50 ${low} 34 ${top - smile * 3}Z`,
    class: "mouth",
  });
}
