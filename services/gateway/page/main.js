// Puts the parts together, and keeps them told.

import { call, events } from "./net.js";
import { $, make } from "./make.js";
import { Chat } from "./chat.js";
import { Works } from "./works.js";
import { opener } from "./trace.js";

let current = "";
const works = new Works({ trace: (id) => trace(id), moved: (id) => { if (id === current) chat.moved = true; } });
const trace = opener(works);
const chat = new Chat({ trace, answering: (request) => { current = request; } });
chat.onkey = () => models();

async function models() {
  try {
    const { data } = await (await call("/v1/models")).json();
    const chosen = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => make("option", { value: id, text: id })));
    if (data.some(({ id }) => id === chosen)) $("model").value = chosen;
    $("about-demo").hidden = $("model").value !== "demo";
    return data.length > 0;
  } catch (error) {
    if (error.status === 401) $("settings").open = true;
    return false;
  }
}

function state(kind, text) {
  $("state").firstElementChild.className = `dot ${kind}`;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

async function watch() {
  const response = await call("/ui/events");
  for await (const [name, data] of events(response)) {
    const said = JSON.parse(data);
    if (name === "happened") works.happened(said);
    else {
      works[name](said);
      const missing = ["tokenizer", "engine", "detokenizer"].filter((role) => !said.processes.some((p) => p.role === role && p.state === "ready"));
      state(missing.length ? "" : "ready", missing.length ? `waiting for the ${missing.join(", ")}` : "ready");
      $("kill").hidden = !said.kill;
    }
  }
}

$("kill").addEventListener("click", async () => {
  $("kill").disabled = true;
  try {
    const { id } = await (await call("/ui/kill", { body: {}, headers: { "x-millrace-page": "1" } })).json();
    works.tell("lost", `kill -9 ${id}`);
  } catch (error) {
    works.tell("lost", error.message);
  }
  setTimeout(() => { $("kill").disabled = false; }, 1000);
});

async function stay() {
  for (;;) {
    if (!$("model").options.length) await models();
    try {
      await watch();
    } catch (error) {
      if (error.status === 404) { // keys are in use: nothing is shown of others
        $("closed").hidden = false;
        for (const id of ["stations", "plots", "rides", "events"]) $(id).hidden = true;
        state("ready", "ready");
        return;
      }
      state("gone", error.status ? error.message : "the gateway does not answer");
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

$("model").addEventListener("change", () => { $("about-demo").hidden = $("model").value !== "demo"; });
stay();
