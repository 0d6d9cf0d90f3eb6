"use strict";

// The page shows the OpenAPI document of this server, and sends the requests of its forms.
const source = new URL("../openapi.json", document.baseURI);

// element makes an element with properties and children.
function element(tag, properties, ...children) {
	const e = Object.assign(document.createElement(tag), properties);
	e.append(...children);
	return e;
}

// resolve follows a $ref within the document.
function resolve(doc, node) {
	while (node && node.$ref) {
		node = node.$ref.split("/").slice(1).reduce((at, name) => at[name], doc);
	}
	return node;
}

// field makes a labelled input, and returns both.
function field(name, description, input) {
	input.name = name;
	const note = description ? element("span", { className: "dim", textContent: description }) : "";
	return element("label", {}, name, note, input);
}

function route(doc, path, method, operation, shared) {
	const parameters = [...shared, ...(operation.parameters || [])].map((p) => resolve(doc, p));
	const inputs = parameters.map((p) => ({
		...p, input: element("input", { required: p.required === true, value: p.in === "header" ? "" : p.example || "", autocomplete: "off" }),
	}));
	const fields = inputs.map((p) => field(p.name, p.description, p.input));
	let type, body;
	if (operation.requestBody) {
		type = element("select", {}, element("option", { value: "", textContent: "no body" }));
		for (const name of Object.keys(operation.requestBody.content)) {
			type.append(element("option", { value: name, textContent: name }));
		}
		body = element("textarea", {});
		fields.push(field("Content-Type", "The type of the body.", type), field("body", "", body));
	}
	const success = resolve(doc, operation.responses["200"]).content || {};
	let accept;
	if (Object.keys(success).length > 1) {
		accept = element("select", {}, ...Object.keys(success).map((name) => element("option", { value: name, textContent: name })));
		fields.push(field("Accept", "The representation to return.", accept));
	}
	const output = element("div", { className: "output" });
	output.setAttribute("aria-live", "polite");
	const form = element("form", { className: "try" },
		element("div", { className: "fields" }, ...fields), element("button", { type: "submit", textContent: "Send" }), output);
	form.addEventListener("submit", async (event) => {
		event.preventDefault();
		const url = new URL((new URL(doc.servers[0].url, source).pathname.replace(/\/$/, "") + path)
			.replace("{key}", () => encodeURIComponent(inputs.find((p) => p.in === "path").input.value)), source);
		const request = { method: method.toUpperCase(), headers: {}, cache: "no-store" };
		for (const p of inputs) {
			if (p.input.value === "") continue;
			if (p.in === "query") url.searchParams.set(p.name, p.input.value);
			if (p.in === "header") request.headers[p.name] = p.input.value;
		}
		if (accept) request.headers.Accept = accept.value;
		if (type && type.value) {
			request.headers["Content-Type"] = type.value;
			request.body = body.value;
		}
		output.replaceChildren(...await send(url, request));
	});

	const responses = Object.entries(operation.responses).map(([status, r]) => element("tr", {},
		element("td", { className: "status", textContent: status }), element("td", { textContent: resolve(doc, r).description })));
	return element("details", { className: "card route", id: operation.operationId },
		element("summary", {},
			element("span", { className: "method " + method, textContent: method.toUpperCase() }),
			element("span", { className: "path", textContent: path }), element("h2", { textContent: operation.summary })),
		element("p", { textContent: operation.description || "" }), form,
		element("details", {}, element("summary", { textContent: "Responses" }),
			element("table", {}, element("tbody", {}, ...responses))));
}

// send returns what to show of the request and its response.
async function send(url, request) {
	const sent = element("pre", { className: "sent", textContent: request.method + " " + url.pathname + url.search });
	try {
		const response = await fetch(url, request);
		const headers = [...response.headers].map(([name, value]) => name + ": " + value).join("\n");
		return [sent,
			element("p", { className: "status " + (response.ok ? "ok" : "failed"), textContent: (response.status + " " + response.statusText).trim() }),
			element("pre", { className: "headers", textContent: headers }),
			element("pre", { className: "received", textContent: await response.text() })];
	} catch (error) {
		return [sent, element("p", { className: "status failed", textContent: "no response: " + error.message })];
	}
}

async function show() {
	const routes = document.getElementById("routes");
	try {
		const doc = await (await fetch(source)).json();
		document.getElementById("about").textContent = doc.info.description;
		routes.replaceChildren();
		for (const [path, item] of Object.entries(doc.paths)) {
			for (const method of ["post", "get", "head", "delete"]) {
				if (item[method]) routes.append(route(doc, path, method, item[method], item.parameters || []));
			}
		}
		routes.querySelectorAll(".route").forEach((d) => { d.open = d.id !== "headValue"; });
	} catch (error) {
		routes.replaceChildren(element("p", { className: "card failed", textContent: "The document cannot be loaded: " + error.message }));
	}
}

show();
