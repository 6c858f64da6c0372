// The pipeline, alive: who is there, what each hop took, what is lost and where it goes on.

import { $, make, ms } from "./make.js";
import { Plot } from "./plot.js";

const STATIONS = [
  ["gateway", "Gateway", "owns the request, sends the stream"],
  ["tokenizer", "Tokenizer", "text to tokens"],
  ["queue", "Queue", "JetStream: its limits are the backpressure"],
  ["engine", "Engine", "ONNX Runtime, one step for all"],
  ["detokenizer", "Detokenizer", "tokens to text"],
];
const AT = { admit: "gateway", chat: "gateway", stream: "gateway", tokenize: "tokenizer", publish: "tokenizer",
  claim: "engine", prefill: "engine", decode: "engine", detokenize: "detokenizer" };
const LIT_MS = 700, TOLD_MS = 12000, RIDES = 8;

export class Works {
  constructor({ trace, moved }) {
    this.trace = trace;
    this.moved = moved;
    this.rides = new Map(); // by the last 32 digits of the request
    this.changed = () => {}; // told of a request when there is more to know of it
    this.rate = new Plot($("rate-plot"));
    this.waiting = new Plot($("waiting-plot"));
    this.sampled = 0;
    this.stations = {};
    for (const [role, title, about] of STATIONS) {
      const took = make("span", { class: "ms" }), list = make("div");
      const item = make("li", { class: "station", "data-role": role, title: about },
        make("div", { class: "title" }, make("span", { text: title }), took), list);
      this.stations[role] = { item, took, list, timer: 0 };
      $("stations").append(item);
    }
  }

  picture(picture) {
    this.rides = new Map((picture.requests || []).map((ride) => [short(ride.request), ride]));
    this.rate.set(picture.seconds.map((second) => second.tokens_per_s));
    this.waiting.set(picture.seconds.map((second) => second.waiting));
    this.now(picture);
    this.list();
  }

  now(picture) {
    for (const role of ["gateway", "tokenizer", "engine", "detokenizer"]) {
      const rows = picture.processes.filter((process) => process.role === role);
      this.stations[role].list.replaceChildren(...rows.map(row));
    }
    this.stations.queue.list.replaceChildren(make("div", { class: "process" },
      make("span", { class: "dot ready" }), make("span", { text: `${picture.waiting} waiting, ${picture.running} running` })));
    $("rate").textContent = Math.round(picture.tokens_per_s);
    $("waiting").textContent = picture.waiting;
    $("works").classList.toggle("flowing", picture.running > 0);
    if (picture.at - this.sampled >= 1) {
      this.sampled = picture.at;
      this.rate.add(picture.tokens_per_s);
      this.waiting.add(picture.waiting);
    }
  }

  happened(what) {
    const id = short(what.request);
    const ride = this.rides.get(id);
    switch (what.kind) {
      case "opened":
        this.rides.set(id, { request: what.request, trace: what.trace, model: what.model, began: what.at, hops: [], lost: [], attempts: 0, ended: 0, tokens: 0 });
        this.light("gateway");
        break;
      case "hop":
        ride?.hops.push(what);
        this.light(AT[what.name] || what.role, what.ms);
        if (what.name === "claim" && ride) this.light("queue", waited(ride, what));
        break;
      case "granted":
        if (ride) ride.attempts += 1;
        this.light("engine");
        if (what.epoch > 1) {
          this.tell("resumed", `goes on at ${what.engine} from token ${what.resumed_tokens}`);
          this.moved(id);
        }
        break;
      case "lost":
        ride?.lost.push(what);
        this.tell("lost", `${what.engine} lost (${what.reason})`);
        break;
      case "ended":
        if (ride) Object.assign(ride, { ended: what.at, finish: what.finish, tokens: what.tokens, first_ms: what.first_ms });
        this.light("gateway");
        break;
    }
    this.list();
    this.changed(id);
  }

  light(role, took) {
    const station = this.stations[role];
    if (!station) return;
    station.item.classList.add("lit");
    clearTimeout(station.timer);
    station.timer = setTimeout(() => station.item.classList.remove("lit"), LIT_MS);
    if (took !== undefined) station.took.textContent = `${ms(took)} ms`;
  }

  tell(kind, text) {
    const line = make("li", { class: kind, text });
    $("events").prepend(line);
    while ($("events").childElementCount > 4) $("events").lastElementChild.remove();
    setTimeout(() => line.remove(), TOLD_MS);
  }

  list() {
    const last = [...this.rides.entries()].slice(-RIDES).reverse();
    $("rides").replaceChildren(...last.map(([id, ride]) => {
      const said = ride.ended ? `${ride.tokens} tokens` : "running";
      const button = make("button", { type: "button" }, make("span", { class: "id", text: id.slice(0, 8) }),
        make("span", { class: ride.attempts > 1 ? "moved" : "", text: ride.attempts > 1 ? `${ride.attempts} engines` : "" }),
        make("span", { text: said }));
      button.addEventListener("click", () => this.trace(id));
      return make("li", {}, button);
    }));
  }
}

// From the job's being stored to an engine's having it.
function waited(ride, claim) {
  const stored = ride.hops.find((hop) => hop.name === "publish");
  return stored && claim.epoch <= 1 ? Math.max(0, (claim.began - stored.began) * 1000 - stored.ms) : undefined;
}

export const short = (request) => request.split("-").pop();

function row({ id, state, load, room }) {
  const bar = make("i");
  bar.style.width = room ? `${Math.min(100, load / room * 100)}%` : load ? "100%" : "0";
  return make("div", { class: "process" },
    make("span", { class: `dot ${state}`, title: state }), make("span", { class: "id", text: id }),
    make("span", {}, make("span", { class: "load" }, bar), room ? `${load}/${room}` : `${load}`));
}
