"use strict";

// The page polls the samples of the server once a second, and plots the last minutes.
const shortest = 60000, longest = 300000; // milliseconds
const width = 300, height = 100; // of a plot, in its own units
let samples = [];
let limits = {};

const integer = new Intl.NumberFormat("en");

function count(n) {
	return n >= 10000 ? integer.format(Math.round(n / 1000)) + " k" : integer.format(n < 10 ? Math.round(n * 10) / 10 : Math.round(n));
}

function micros(us) {
	if (us < 1000) return Math.round(us) + " µs";
	return us < 1e6 ? (us / 1000).toPrecision(2) + " ms" : (us / 1e6).toPrecision(2) + " s";
}

// rate returns the increase of a total a second.
function rate(name) {
	return (at, before) => before && at[name] >= before[name] ? (at[name] - before[name]) * 1000 / (at.time - before.time) : 0;
}

// Each line has a label, a class, and a value for a sample and the one before it.
const plots = [
	{ title: "Connections", format: count, lines: [
		["in use", "k1", (s) => s.inUse], ["idle", "k2", (s) => s.idle], ["waiting", "k4", (s) => s.waiting],
		["maximum", "k5", () => limits.maxActive], ["minimum idle", "k5", () => limits.minIdle]] },
	{ title: "Results a second", format: count, lines: [
		["hits", "k2", rate("hits")], ["misses", "k1", rate("misses")], ["stale", "k3", rate("stale")], ["errors", "k4", rate("errors")]] },
	{ title: "Time of a call", format: micros, lines: [["median", "k1", (s) => s.p50], ["99 % within", "k3", (s) => s.p99]] },
	{ title: "Loads and dials a second", format: count, lines: [
		["loads", "k1", rate("loads")], ["shared", "k2", rate("shared")], ["dials", "k5", rate("dials")], ["failed dials", "k4", rate("dialFailures")]] },
];

const totals = [["Hits", "hits"], ["Misses", "misses"], ["Stale hits", "stale"], ["Known to be missing", "negatives"], ["Loads", "loads"],
	["Shared loads", "shared"], ["Refused values", "refused"], ["Errors", "errors"], ["Open connections", "open"], ["Dials", "dials"],
	["Failed dials", "dialFailures"]];

function svg(tag, attributes) {
	const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
	return e;
}

function element(tag, properties, ...children) {
	const e = Object.assign(document.createElement(tag), properties);
	e.append(...children);
	return e;
}

for (const plot of plots) {
	plot.picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": plot.title });
	plot.legend = element("ul", { className: "legend" });
	plot.top = element("span", {});
	plot.begin = element("span", {});
	plot.values = plot.lines.map(([label, color]) => {
		const value = element("b", { textContent: "–" });
		plot.legend.append(element("li", { className: color }, element("span", {}, label + " ", value)));
		return value;
	});
	document.getElementById("plots").append(element("section", { className: "card" }, element("h2", { textContent: plot.title }), plot.legend,
		element("div", { className: "scale" }, plot.top), plot.picture,
		element("div", { className: "scale" }, plot.begin, element("span", { textContent: "now" }))));
}
const fields = totals.map(([label, name]) => {
	const value = element("dd", { textContent: "–" });
	document.getElementById("totals").append(element("div", {}, element("dt", { textContent: label }), value));
	return [name, value];
});

// draw draws the lines of a plot, and breaks them where there are no samples.
function draw(plot, now) {
	const span = Math.max(shortest, now - samples[0].time);
	const rows = plot.lines.map(([, , value]) => samples.map((s, i) => value(s, samples[i - 1])));
	const top = Math.max(1, ...rows.flat()) * 1.1;
	const lines = rows.map((row, k) => {
		let path = "";
		samples.forEach((s, i) => {
			const x = width - (now - s.time) * width / span;
			const joins = i > 0 && s.time - samples[i - 1].time < 5000;
			path += `${joins ? "L" : "M"}${x.toFixed(1)} ${(height - row[i] * (height - 2) / top - 1).toFixed(1)}`;
		});
		plot.values[k].textContent = plot.format(row[row.length - 1]);
		return svg("path", { class: plot.lines[k][1] + " line", d: path });
	});
	plot.top.textContent = plot.format(top);
	plot.begin.textContent = duration(span) + " ago";
	const axes = [0, 0.5, 1].map((at) => svg("line", { class: "axis", x1: 0, x2: width, y1: at * (height - 1) + 0.5, y2: at * (height - 1) + 0.5 }));
	plot.picture.replaceChildren(...axes, ...lines.reverse());
}

function duration(milliseconds) {
	const seconds = Math.round(milliseconds / 1000);
	if (seconds < 60) return seconds + " s";
	return seconds < 3600 ? Math.floor(seconds / 60) + " min" : Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
}

// state changes the text only when it differs, because a screen reader reads each change.
function state(name, text, detail) {
	document.getElementById("state").className = "state " + name;
	const e = document.getElementById("redis");
	if (e.textContent !== text) e.textContent = text;
	document.getElementById("since").textContent = detail;
}

async function poll() {
	try {
		const last = samples.length ? samples[samples.length - 1].time : -1;
		const response = await fetch("data?after=" + last, { signal: AbortSignal.timeout(5000), cache: "no-store" });
		if (!response.ok) throw new Error(response.status);
		const data = await response.json();
		limits = data;
		// A server that was restarted begins to count time anew.
		samples = data.samples.length && data.samples[0].time <= last ? data.samples : samples.concat(data.samples);
		const now = samples[samples.length - 1].time;
		samples = samples.filter((s) => now - s.time <= longest);
		const at = samples[samples.length - 1];
		const words = { up: "Redis is up", down: "Redis is down", busy: "All connections are in use" };
		state(at.redis, words[at.redis], "for " + duration(now - at.since));
		plots.forEach((plot) => draw(plot, now));
		fields.forEach(([name, value]) => { value.textContent = integer.format(at[name]); });
	} catch {
		state("down", "This server does not answer", "");
	}
	setTimeout(poll, 1000);
}

poll();
