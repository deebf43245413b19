// Draws the charts of a report from the data in the page. All text comes from there too; colours are the page's variables.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const W = data.words;
  const NARROW = 560; // below this, labels stand above their marks, not beside them
  const style = { fontFamily: "inherit", fontSize: "12px", background: "transparent", color: "var(--soft)", overflow: "visible" };
  const grid = "var(--grid)";
  const whole = d3.format(",d");
  const SVG = "http://www.w3.org/2000/svg";

  // Numbers that JSON cannot hold come as text: "nan", "inf".
  const finite = (v) => typeof v === "number" && Number.isFinite(v);

  function element(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  }

  // Text widths are needed before anything is drawn, to leave room for labels.
  const pen = document.createElement("canvas").getContext("2d");
  function textWidth(text) {
    pen.font = "12px " + getComputedStyle(document.body).fontFamily;
    return pen.measureText(text).width;
  }
  const widest = (texts) => Math.max(0, ...texts.map(textWidth));
  const minus = (text) => text.replace(/(?<![\w.])-(?=\d)/g, "−");

  // A value axis has few ticks where there is little room.
  const ticks = (width) => Math.max(2, Math.min(8, Math.floor(width / 90)));

  // Powers of ten where there are some, and what lies between them where there are not.
  function logTicks(low, high) {
    const tens = d3.range(Math.ceil(Math.log10(low)), Math.floor(Math.log10(high)) + 1);
    if (tens.length > 1) return tens.filter((_, i) => i % Math.ceil(tens.length / 6) === 0).map((n) => 10 ** n);
    return d3.scaleLog([low, high], [0, 1]).ticks(4).filter((v) => /^[123]/.test(v.toExponential()));
  }
  const short = (v) => (v === 0 || (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e4) ? d3.format("~g")(v) : d3.format(".0e")(v).replace("e+", "e")).replace("-", "−");

  // One unit map: a path per state, from run-length coded rows.
  function unitMap(d, width) {
    const height = Math.max(84, Math.min(190, 40 + 5 * d.units));
    const end = d.edges.length ? Math.max(d.steps, d.edges[d.edges.length - 1]) : d.steps || 1;
    const inner = [d.dead, d.units - d.dead].every((n) => n > 0.12 * d.units) ? [d.dead] : [];
    const draw = (index, scales) => {
      const group = element("g", { "shape-rendering": "crispEdges" });
      const paths = {};
      const add = (state, x0, x1, y0, y1) => {
        (paths[state] = paths[state] || []).push(`M${x0},${y0}H${x1}V${y1}H${x0}Z`);
      };
      const x = d.edges.map((step) => Math.round(scales.x(step) * 100) / 100);
      const y = (row) => Math.round(scales.y((row * d.units) / d.shown) * 100) / 100;
      let row = 0;
      for (const [n, code] of d.rows) {
        let column = 0;
        for (const [, state, length] of code.matchAll(/([a-z-])(\d+)/g)) {
          add(state, x[column], x[column + +length], y(row), y(row + n));
          column += +length;
        }
        row += n;
      }
      const last = x.length ? x[x.length - 1] : scales.x(0);
      if (last < scales.x(end) - 0.5) add("-", last, scales.x(end), y(0), y(d.shown));
      if (x.length && x[0] > scales.x(0) + 0.5) add("-", scales.x(0), x[0], y(0), y(d.shown));
      for (const state in paths) {
        const shape = paths[state].join("");
        group.append(element("path", { class: "s" + state, d: shape }));
        if ("xpe-".includes(state)) group.append(element("path", { fill: `url(#mark-${state})`, d: shape }));
      }
      return group;
    };
    return Plot.plot({
      width, height, style, marginTop: 4, marginRight: 12, marginBottom: 32,
      marginLeft: 12 + textWidth(whole(d.units)) + 8,
      x: { type: "linear", domain: [0, end], label: null },
      y: { type: "linear", domain: [d.units, 0], label: null },
      marks: [
        draw,
        Plot.frame({ stroke: "var(--line)" }),
        Plot.axisX([0, d.steps || end], { tickFormat: whole, tickSize: 3, label: W.step, labelAnchor: "center", labelArrow: "none", labelOffset: 28 }),
        Plot.axisY([0, ...inner, d.units], { tickFormat: whole, tickSize: 3, label: null }),
        Plot.text([W.units], { frameAnchor: "left", rotate: -90, dx: -textWidth(whole(d.units)) - 12, textAnchor: "middle" }),
      ],
    });
  }

  function gradients(d, width) {
    const names = [...new Set(d.points.map((p) => p.layer))];
    const byName = new Map(d.points.map((p) => [p.depth, p.layer]));
    const left = 58;
    const named = names.length === d.layers && widest(names) + 14 < (width - left) / names.length;
    // A forecast has one line and the table's own names below it: as many as have room.
    const every = d.names ? Math.ceil(d.layers * (widest(d.names) + 14) / (width - left)) : 1;
    const atLayers = d3.range(1, d.layers + 1).filter((i) => (d.names ? (i - 1) % every === 0 : d.layers <= 12 || i === 1 || i % Math.ceil(d.layers / 10) === 0));
    const span = Math.max(1.5, d.high / d.low);
    const floor = d.low / span ** 0.12, roof = d.high * span ** 0.12;
    const shown = d.points.map((p) => ({ ...p, odd: !finite(p.norm) || p.norm === 0, y: finite(p.norm) ? Math.max(p.norm, floor) : roof }));
    const lines = d.steps.map((step, when) => ({ step, when, points: shown.filter((p) => p.when === when && !p.odd) }));
    const few = names.length <= 24;
    const paint = (when) => (when === d.steps.length - 1 ? "var(--eased)" : "var(--plain)");
    const odd = shown.filter((p) => p.odd);
    const what = (p) => (finite(p.norm) ? W.zero : W.broken);
    const firsts = odd.filter((p, i) => odd.findIndex((q) => what(q) === what(p)) === i);
    const atTicks = logTicks(floor, roof);
    return Plot.plot({
      width, height: 250, style, marginLeft: left, marginRight: 18, marginTop: 34, marginBottom: 40,
      x: { type: "linear", domain: [0.6, d.layers + 0.4], label: null },
      y: { type: "log", domain: [floor, roof], label: W.gradient, grid: false },
      marks: [
        Plot.gridY(atTicks, { stroke: grid, strokeOpacity: 1 }),
        Plot.axisY(atTicks, { tickSize: 0, label: W.gradient, tickFormat: short }),
        Plot.axisX(atLayers, {
          tickFormat: (i) => (d.names ? d.names[i - 1] : named ? byName.get(i) : String(i)), tickSize: 3, label: W.depth, labelAnchor: "center", labelArrow: "right", labelOffset: 36,
        }),
        lines.map((line) => [
          Plot.line(line.points, { x: "depth", y: "y", stroke: paint(line.when), strokeWidth: 1.8, strokeDasharray: line.when || lines.length === 1 ? null : "4 3" }),
          few ? Plot.dot(line.points, { x: "depth", y: "y", r: 3.2, stroke: paint(line.when), fill: line.when || lines.length === 1 ? paint(line.when) : "var(--paper)" }) : null,
        ]),
        Plot.text(odd, { x: "depth", y: "y", text: (p) => (finite(p.norm) ? "×" : "!"), fill: "var(--bad)", fontWeight: 700, fontSize: 15 }),
        Plot.text(firsts, { x: "depth", y: "y", text: what, fill: "var(--bad)", textAnchor: "start", dx: 9 }),
        d.names ? null : keys(lines),
      ],
    });
  }

  // Which line is which, above the chart at its right: as the lines are drawn, so that it can be told without colour.
  function keys(lines) {
    let right = 0;
    return [...lines].reverse().map(({ step, when }) => {
      const last = when === lines.length - 1;
      const text = `${last ? "●" : "○"} ${W.at} ${whole(step)}`;
      const mark = Plot.text([text], { frameAnchor: "top-right", textAnchor: "end", dy: -28, dx: -right, fill: last ? "var(--eased)" : "var(--plain)" });
      right += textWidth(text) + 18;
      return mark;
    });
  }

  function loss(d, width) {
    const points = d.points.map(([step, mean, low, high]) => ({ step, mean, low, high }));
    const rules = d.marks.concat(d.broken === null || d.marks.some((m) => m.step === d.broken) ? [] : [{ step: d.broken, label: W.broken }]);
    const room = rules.length ? 14 * rules.length + 20 : 20;
    const atTicks = d.log ? [logTicks(d3.min(points, (p) => p.low), d3.max(points, (p) => p.high))] : [];
    const band = points.some((p) => p.high > p.low);
    return Plot.plot({
      width, height: Math.max(250, 200 + room), style, marginLeft: 48, marginRight: 18, marginTop: room + 14, marginBottom: 40,
      x: { domain: [0, d.steps], label: null },
      y: { type: d.log ? "log" : "linear", zero: !d.log, nice: !d.log, label: W.loss },
      marks: [
        Plot.gridY(...atTicks, { stroke: grid, strokeOpacity: 1, ticks: 5 }),
        Plot.axisY(...atTicks, { ticks: 5, tickSize: 0, tickFormat: short, label: W.loss }),
        Plot.axisX({ ticks: ticks(width - 60), tickSize: 3, tickFormat: whole, label: W.step, labelAnchor: "center", labelOffset: 36 }),
        band ? Plot.areaY(points, { x: "step", y1: "low", y2: "high", fill: "var(--eased)", fillOpacity: 0.2 }) : null,
        Plot.line(points, { x: "step", y: "mean", stroke: "var(--eased)", strokeWidth: 1.6 }),
        rules.map((rule, i) => {
          const after = rule.step > d.steps / 2;
          return [
            Plot.ruleX([rule], { x: "step", stroke: "var(--bad)", strokeDasharray: "3 3", insetTop: -14 * (rules.length - i) }),
            Plot.text([rule], { x: "step", frameAnchor: "top", dy: -14 * (rules.length - i), dx: after ? -5 : 5, textAnchor: after ? "end" : "start", text: (r) => `${r.label}, ${W.step} ${whole(r.step)}`, fill: "var(--bad)" }),
          ];
        }),
      ],
    });
  }

  // Rows with a name: beside the marks where there is room, above them where there is not.
  function layout(names, labels, width) {
    const above = width < NARROW;
    return {
      above,
      rowHeight: above ? 46 : 31,
      room: above ? width - 12 : width * 0.36,
      left: above ? 14 : Math.min(1.12 * widest(names) + 18, width * 0.36),
      right: above ? 16 : labels.length ? 1.1 * widest(labels) + 26 : 54,
    };
  }

  function replays(d, width) {
    const at = layout(d.rows.map((r) => r.change), [], width);
    const shown = d.rows.map((r, i) => ({ ...r, i, value: finite(r.burden) ? r.burden : 0 }));
    const fill = (r) => (r.role === "cause" ? "var(--alive)" : r.role === "control" ? "var(--dead-mark)" : "var(--bar)");
    return Plot.plot({
      width, height: shown.length * at.rowHeight + (at.above ? 42 : 28), style,
      marginLeft: at.left, marginRight: widest(d.rows.map((r) => r.share)) + 22, marginTop: at.above ? 18 : 4, marginBottom: 24,
      x: { domain: [0, Math.max(0.05, d3.max(shown, (r) => r.value))], nice: true, label: null },
      y: { type: "band", domain: d3.range(shown.length), padding: at.above ? 0.62 : 0.34, label: null, axis: null },
      marks: [
        d.shares ? Plot.gridX({ stroke: grid, strokeOpacity: 1, ticks: ticks(width) }) : null,
        d.shares ? Plot.axisX({ ticks: ticks(width), tickFormat: (v) => `${Math.round(100 * v)} %`, tickSize: 0, label: null }) : null,
        Plot.barX(shown, { x: "value", y: "i", fill, rx2: 3 }),
        Plot.text(shown, { x: "value", y: "i", text: "share", dx: 7, textAnchor: "start", fill: "var(--ink)", fontWeight: (r) => (r.role === "cause" ? 700 : 400) }),
        names(shown, (r) => r.change, (r) => r.role === "cause", at),
        Plot.ruleX([0], { stroke: "var(--soft)" }),
      ],
    });
  }

  // Bold names are a mark of their own, because a weight is one for all of a mark's texts.
  function names(rows, text, strong, at) {
    return [true, false].map((bold) =>
      Plot.text(rows.filter((r) => Boolean(strong(r)) === bold), {
        y: "i", text, frameAnchor: "left", textAnchor: at.above ? "start" : "end", fill: "var(--ink)",
        dx: at.above ? 2 : -10, dy: at.above ? -17 : 0, fontWeight: bold ? 700 : 400,
        lineWidth: at.room / 13, textOverflow: "ellipsis-end", stroke: "var(--paper)", strokeWidth: 5,
      }),
    );
  }

  function trial(d, width) {
    const rows = d.rows.map((r, i) => ({ ...r, i }));
    const label = (r) => minus(`${r.mark} ${r.label}`);
    const at = layout(rows.map((r) => r.name), rows.map(label), width);
    const [low, high] = d.domain;
    const hold = (v) => (finite(v) ? Math.max(low, Math.min(high, v)) : v === "-inf" ? low : high);
    const dots = rows.flatMap((r) => r.dots.filter((v) => v >= low && v <= high).map((v) => ({ ...r, v })));
    // What lies beyond the axis is an arrow at its edge.
    const beyond = rows.flatMap((r) => [
      ...(!finite(r.low) || r.low < low ? [{ ...r, v: low, arrow: "◂", dx: -3 }] : []),
      ...(!finite(r.high) || r.high > high ? [{ ...r, v: high, arrow: "▸", dx: 3 }] : []),
    ]);
    const paint = (r) => ({ cured: "var(--good)", eased: "var(--eased)", harmed: "var(--bad)" })[r.verdict] || "var(--plain)";
    const symbol = (r) => ({ cured: "circle", eased: "diamond2", harmed: "triangle2", no_effect: "square" })[r.verdict] || "circle";
    const means = rows.filter((r) => finite(r.mean) && r.mean >= low && r.mean <= high);
    const open = (r) => r.verdict === "unproven" || r.verdict === "no_effect";
    const above = at.above ? names(rows, (r) => `${r.name}: ${label(r)}`, (r) => r.winner, at) : names(rows, (r) => r.name, (r) => r.winner, at);
    return Plot.plot({
      width, height: rows.length * at.rowHeight + (at.above ? 44 : 32), style,
      marginLeft: at.left, marginRight: at.right, marginTop: at.above ? 18 : 6, marginBottom: 26,
      x: { domain: [low, high], label: null },
      y: { type: "point", domain: d3.range(rows.length), padding: 0.5, label: null, axis: null },
      marks: [
        Plot.gridX({ stroke: grid, strokeOpacity: 1, ticks: ticks(width - at.left - at.right) }),
        Plot.axisX({ ticks: ticks(width - at.left - at.right), tickSize: 0, tickFormat: (v) => d3.format("+~r")(v).replace("+0", "0"), label: null }),
        Plot.ruleX([0], { stroke: "var(--soft)", strokeWidth: 1.2 }),
        Plot.ruleY(rows, { y: "i", x1: (r) => hold(r.low), x2: (r) => hold(r.high), stroke: paint, strokeWidth: 2.4, strokeLinecap: "round" }),
        Plot.dot(dots, { x: "v", y: "i", r: 3, stroke: paint, strokeWidth: 1.3, fill: "var(--paper)", fillOpacity: 0.6 }),
        Plot.dot(means, { x: "mean", y: "i", r: 5.4, symbol, stroke: paint, strokeWidth: 2, fill: (r) => (open(r) ? "var(--paper)" : paint(r)) }),
        Plot.text(beyond, { x: "v", y: "i", text: "arrow", fill: paint, fontSize: 15, dx: 0 }),
        above,
        at.above ? null : [true, false].map((bold) =>
          Plot.text(rows.filter((r) => r.winner === bold), { y: "i", frameAnchor: "right", textAnchor: "start", dx: 16, text: label, fill: paint, fontWeight: bold ? 700 : 400 })),
      ],
    });
  }

  // A function of one number, or its slope, with the density of normal inputs as a shade and corners as dots.
  function curve(d, width) {
    const height = Math.max(210, Math.min(300, width * 0.62));
    const slack = (d.high - d.low) / 500; // points are rounded, and must not fall off the edge for that
    const inside = (y) => finite(y) && y >= d.low - slack && y <= d.high + slack;
    const points = d.pieces.flatMap((piece, i) => piece.map(([x, y]) => ({ x, y: inside(y) ? y : NaN, i })));
    const density = d3.range(-d.reach, d.reach + 0.01, d.reach / 60).map((x) => ({ x, y: Math.exp((-x * x) / 2) }));
    const tall = (v) => Math.max(d.low, 0) + 0.3 * v * (d.high - Math.max(d.low, 0));
    return Plot.plot({
      width, height, style, marginLeft: 44, marginRight: 12, marginTop: 26, marginBottom: 40,
      x: { domain: [-d.reach, d.reach], label: null },
      y: { domain: [d.low, d.high], label: null, nice: true },
      marks: [
        Plot.gridY({ stroke: grid, strokeOpacity: 1, ticks: 5 }),
        Plot.areaY(density, { x: "x", y1: Math.max(d.low, 0), y2: (p) => tall(p.y), fill: "var(--bar)", fillOpacity: 0.22 }),
        Plot.axisX({ ticks: ticks(width - 56), tickSize: 0, label: W.x, labelAnchor: "right", labelArrow: "right", labelOffset: 36 }),
        Plot.axisY({ ticks: 5, tickSize: 0, tickFormat: (v) => short(v), label: d.name, labelAnchor: "top", labelArrow: "up", labelOffset: 40 }),
        Plot.ruleY([0], { stroke: "var(--soft)", strokeOpacity: 0.7 }),
        Plot.ruleX([0], { stroke: "var(--soft)", strokeOpacity: 0.35 }),
        Plot.ruleX(d.knees, { stroke: "var(--bad)", strokeDasharray: "3 4", strokeOpacity: 0.75 }),
        Plot.line(points, { x: "x", y: "y", z: "i", stroke: "var(--eased)", strokeWidth: 2.4 }),
        Plot.dot(d.ends, { x: "0", y: "1", r: 3.6, stroke: "var(--bad)", strokeWidth: 1.8, fill: "var(--paper)" }),
        Plot.tip(points, Plot.pointerX({ x: "x", y: "y", fill: "var(--raised)", stroke: "var(--line)", format: { x: ".2f", y: ".4~g", z: false } })),
      ],
    });
  }

  // Named numbers with their intervals, one row each; what lies beyond the axis ends at its edge.
  function rows(d, width) {
    const series = d.series[0];
    const points = series.x.map((name, i) => ({ name, i, v: series.y[i], low: series.low[i], high: series.high[i] }));
    const marked = finite(d.mark) ? [d.mark] : [];
    // Within a power of ten a logarithmic axis has too few ticks to be read.
    const log = d.log_x && d3.max([...series.y, ...marked]) >= 10 * d3.min([...series.y, ...marked]);
    const known = points.filter((p) => finite(p.v) && (!log || p.v > 0));
    // An interval much longer than the numbers are apart would squeeze them into one place.
    const values = [...known.map((p) => p.v), ...marked];
    const scale = log ? Math.log10 : (v) => v;
    const [least, most] = [d3.min(values), d3.max(values)];
    const room = 2 * Math.max(scale(most) - scale(least), log ? 0.15 : 0.05 * Math.max(Math.abs(least), Math.abs(most)) || 1);
    const back = log ? (v) => 10 ** v : (v) => v;
    const bounds = [back(scale(least) - room), back(scale(most) + room)];
    const ends = [...values, ...known.flatMap((p) => [p.low, p.high])].filter((v) => finite(v) && v >= bounds[0] && v <= bounds[1]);
    const beyond = known.some((p) => !finite(p.low) || p.low < bounds[0] || !finite(p.high) || p.high > bounds[1]);
    let [low, high] = d3.extent(beyond ? [...ends, ...bounds] : ends);
    const pad = (scale(high) - scale(low)) * 0.06 || (log ? 0.1 : 0.5);
    [low, high] = [back(scale(low) - pad), back(scale(high) + pad)];
    const hold = (v, end) => (finite(v) ? Math.max(low, Math.min(high, v)) : end);
    const at = layout(points.map((p) => p.name), [], width);
    const atTicks = log ? [logTicks(low, high)] : [];
    return Plot.plot({
      width, height: points.length * at.rowHeight + 64, style,
      marginLeft: at.left, marginRight: 24, marginTop: at.above ? 30 : 22, marginBottom: 42,
      x: { type: log ? "log" : "linear", domain: [low, high], label: null },
      y: { type: "point", domain: d3.range(points.length), padding: 0.5, label: null, axis: null },
      marks: [
        Plot.gridX(...atTicks, { stroke: grid, strokeOpacity: 1, ticks: ticks(width - at.left) }),
        Plot.axisX(...atTicks, { ticks: ticks(width - at.left), tickSize: 0, tickFormat: short, label: d.x, labelAnchor: "center", labelArrow: "right", labelOffset: 36 }),
        Plot.ruleX(marked, { stroke: "var(--soft)", strokeWidth: 1.2, strokeDasharray: "3 3" }),
        Plot.text(marked.map((v) => ({ v })), { x: "v", frameAnchor: "top", dy: at.above ? -20 : -14, text: () => d.mark_name, fill: "var(--soft)" }),
        Plot.ruleY(known, { y: "i", x1: (p) => hold(p.low, low), x2: (p) => hold(p.high, high), stroke: "var(--eased)", strokeWidth: 2.4, strokeLinecap: "round" }),
        Plot.dot(known, { x: "v", y: "i", r: 5, stroke: "var(--eased)", strokeWidth: 2, fill: "var(--paper)" }),
        names(points, (p) => p.name, () => false, at),
      ],
    });
  }

  // Curves with their names above the chart, told apart by dashes as well as by hue; intervals are bands.
  const HUES = ["var(--eased)", "var(--bad)", "var(--good)", "var(--plain)", "var(--saturated)", "var(--ink)"];
  const DASHES = [null, "7 4", "2 3", "9 3 2 3", "12 5", "1 4"];
  function lines(d, width) {
    const points = d.series.map((s, k) => s.x.map((x, i) => ({ x, y: s.y[i], low: s.low[i], high: s.high[i], k })).filter((p) => finite(p.y) && (!d.log_y || p.y > 0)));
    const every = points.flat();
    // The key: as many names a line as there is room for.
    let across = 0, line = 0;
    const key = d.series.map((s, k) => {
      const long = textWidth(s.name) + 46;
      if (across && across + long > width - 20) { across = 0; line += 1; }
      const place = { name: s.name, k, across, line };
      across += long;
      return place;
    });
    const top = 20 * (line + 1) + 30;
    const atTicks = d.log_y ? [logTicks(d3.min(every, (p) => p.y), d3.max(every, (p) => p.y))] : [];
    const left = 54;
    return Plot.plot({
      width, height: 230 + top, style, marginLeft: left, marginRight: 18, marginTop: top, marginBottom: 40,
      x: { type: d.log_x ? "log" : "linear", label: null },
      y: { type: d.log_y ? "log" : "linear", label: null, nice: !d.log_y },
      marks: [
        Plot.gridY(...atTicks, { stroke: grid, strokeOpacity: 1, ticks: 5 }),
        Plot.axisY(...atTicks, { ticks: 5, tickSize: 0, tickFormat: short, label: null }),
        Plot.text([`↑ ${d.y}`], { frameAnchor: "top-left", textAnchor: "start", dx: 6 - left, dy: -22 }),
        Plot.axisX(...(d.log_x ? [logTicks(d3.min(every, (p) => p.x), d3.max(every, (p) => p.x))] : []), { ticks: ticks(width - 72), tickSize: 3, tickFormat: short, label: d.x, labelAnchor: "center", labelArrow: "right", labelOffset: 36 }),
        points.map((curve, k) => (curve.some((p) => finite(p.low)) ? Plot.areaY(curve, { x: "x", y1: (p) => (d.log_y ? Math.max(p.low, Number.MIN_VALUE) : p.low), y2: "high", fill: HUES[k % HUES.length], fillOpacity: 0.16 }) : null)),
        points.map((curve, k) => Plot.line(curve, { x: "x", y: "y", stroke: HUES[k % HUES.length], strokeWidth: 2, strokeDasharray: DASHES[k % DASHES.length] })),
        () => {
          const group = element("g", {});
          for (const { name, k, across, line } of key) {
            const y = 8 + 20 * line;
            const stroke = element("line", { x1: across, x2: across + 26, y1: y, y2: y, stroke: HUES[k % HUES.length], "stroke-width": 2 });
            if (DASHES[k % DASHES.length]) stroke.setAttribute("stroke-dasharray", DASHES[k % DASHES.length]);
            const text = element("text", { x: across + 31, y: y + 4, fill: "var(--ink)", "text-anchor": "start" });
            text.textContent = name;
            group.append(stroke, text);
          }
          return group;
        },
      ],
    });
  }

  const CHARTS = { map: unitMap, gradients, loss, replays, trial, curve, rows, lines };
  const SOURCE = { map: "maps", curve: "curves" };

  function draw(figure, width) {
    const plot = figure.querySelector(".plot");
    if (!width || figure.drawnAt === width) return;
    figure.drawnAt = width;
    const kind = figure.dataset.chart;
    let values = data[SOURCE[kind] || kind];
    if (figure.dataset.index !== undefined) values = values[+figure.dataset.index];
    const svg = CHARTS[kind](values, width);
    // The place has its own description; what is inside is for the eye.
    svg.setAttribute("aria-hidden", "true");
    plot.replaceChildren(svg);
  }

  // Figures that are folded away have no width; they are drawn when they are first seen.
  const watcher = new ResizeObserver((entries) => {
    for (const entry of entries) draw(entry.target, Math.floor(entry.contentRect.width));
  });
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    draw(figure, Math.floor(figure.getBoundingClientRect().width));
    watcher.observe(figure);
  }

  // On paper nothing can be unfolded, and a chart drawn for a wide screen would have tiny letters.
  const PAPER = { map: 212, loss: 330, gradients: 330, replays: 680, trial: 680, curve: 330, rows: 680, lines: 560 };
  let unfolded = [];
  addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll("details:not([open], .many)")];
    for (const details of unfolded) details.open = true;
    watcher.disconnect();
    for (const figure of document.querySelectorAll("figure[data-chart]")) draw(figure, PAPER[figure.dataset.chart]);
  });
  addEventListener("afterprint", () => {
    for (const details of unfolded) details.open = false;
    for (const figure of document.querySelectorAll("figure[data-chart]")) watcher.observe(figure);
  });

  for (const block of document.querySelectorAll(".code")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = W.copy;
    button.addEventListener("click", async () => {
      const code = block.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = W.copied;
        setTimeout(() => { button.textContent = W.copy; }, 2000);
      } catch {
        getSelection().selectAllChildren(code); // no clipboard here: selected, ready for the keyboard
      }
    });
    block.append(button);
  }
})();
